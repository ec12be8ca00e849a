#!/bin/bash
# Starts a one-node Ceph RGW whose data lives in memory, as the calling user, without root services.
# R: folder that the Debian packages radosgw, ceph-mon, ceph-osd, ceph-mgr and their dependencies were unpacked into.
# D: new folder for its state. PORT: of S3. MONP: of the monitor. Process ids end up in $D/run/*.pid; SIGTERM stops them.
# User: testing / testingsecret.
set -eu
: "${R:?the folder with the unpacked packages}" "${D:?a new folder}" "${PORT:?}" "${MONP:?}"
L=$R/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH=$L:$L/ceph:$R/lib/x86_64-linux-gnu PATH=$R/usr/bin:$PATH
export PYTHONPATH=$R/usr/lib/python3/dist-packages CEPH_CONF=$D/ceph.conf
mkdir -p "$D"/{mon,osd,rgw,run,log}
cluster=$(cat /proc/sys/kernel/random/uuid)
disk=$(cat /proc/sys/kernel/random/uuid)
cat > "$D/ceph.conf" <<CONF
[global]
fsid = $cluster
mon host = v1:127.0.0.1:$MONP
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
mon allow pool size one = true
mon osd full ratio = .99
mon data avail warn = 1
mon data avail crit = 1
mon max pg per osd = 1000
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
ms bind msgr2 = false
public addr = 127.0.0.1
osd class dir = $L/rados-classes
erasure code dir = $L/ceph/erasure-code
plugin dir = $L/ceph
run dir = $D/run
admin socket = $D/run/\$name.asok
pid file = $D/run/\$name.pid
log file = $D/log/\$name.log
mon data = $D/mon
osd data = $D/osd
rgw data = $D/rgw
CONF
ceph() { /usr/bin/python3 "$R/usr/bin/ceph" -c "$D/ceph.conf" "$@"; }
answers() { curl -s -o "$D/log/first-answer" "http://127.0.0.1:$PORT/"; }
until_true() { for _ in $(seq 150); do "$@" && return; sleep .2; done; echo "not up: $*" >&2; exit 1; }
disk_is_up() { ceph osd stat 2>>"$D/log/start" | grep -q '1 up'; }

monmaptool --create --clobber --fsid "$cluster" --addv a "[v1:127.0.0.1:$MONP]" "$D/monmap"
ceph-mon -c "$D/ceph.conf" -i a --mkfs --monmap "$D/monmap"
ceph-mon -c "$D/ceph.conf" -i a
ceph osd new "$disk"
echo "$disk" > "$D/osd/fsid" # memstore takes its id from here; without it the disk never comes up
ceph-osd -c "$D/ceph.conf" -i 0 --mkfs --osd-uuid "$disk"
until_true ceph-osd -c "$D/ceph.conf" -i 0 # now and then the first start fails with "wrong fsid"
until_true disk_is_up
radosgw -c "$D/ceph.conf" -n client.rgw --rgw-frontends="beast endpoint=127.0.0.1:$PORT tcp_nodelay=1"
until_true answers
radosgw-admin -c "$D/ceph.conf" user create --uid=t --display-name=t --access-key=testing --secret-key=testingsecret
