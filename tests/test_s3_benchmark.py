"""The benchmark of an object store runs end to end on a few photographs, and its server keeps what S3 promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from audited import noise_jpeg
from bucket_model import BucketModel
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.synthetic_bucket import Bucket, Keys
from pipeline.storage.s3_cuts import Ask
from pipeline.storage.s3_pages import page_of

ROOT = Path(__file__).parents[1]


def test_few_keys_and_images(tmp_path: Path) -> None:
    photos, record = tmp_path / "photos", tmp_path / "record.json"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.jpg").write_bytes(noise_jpeg(number))
    command = [sys.executable, str(ROOT / "benchmarks/s3_rates.py"), "--data", str(photos), "--objects", "2500"]
    command += ["--many", "0", "--images", "6", "--turns", "1", "--runner", "local", "--json", str(record)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    found = json.loads(record.read_text())

    assert [(one["keys"], one["requests"]["s3.list"]) for one in found["results"]["listings"]] == [(1000, 1), (2500, 3)]
    assert [found["results"][kind][0]["ok"] for kind in ("disk", "s3")] == [6, 6]
    assert len(found["owed"]) == 5
    assert found["machine"]["cores"] > 0


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 60),
    prefix=st.sampled_from(["", "class", "class00001/", "class00002/photo0000001", "x"]),
    after=st.sampled_from(["", "class00000/", "class00001/photo00000009.jpg", "class00003"]),
    is_by_folder=st.booleans(),
)
def test_its_listing_is_that_of_the_model(count: int, prefix: str, after: str, is_by_folder: bool) -> None:
    keys = Keys(count, 7)
    query = f"list-type=2&prefix={prefix}&max-keys=5&start-after={after}" + "&delimiter=/" * is_by_folder
    status, _, body = Bucket(keys, [b"photo"]).answer("GET", f"/bucket?{query}", "")
    page, wanted = page_of(body), BucketModel(list(keys), 5).answered(Ask(prefix, after, "", is_by_folder))

    assert status == 200
    assert page is not None
    assert [entry.key for entry in page.entries] == [entry.key for entry in wanted.entries]
    assert page.prefixes == wanted.prefixes
    assert bool(page.token) == bool(wanted.token)
