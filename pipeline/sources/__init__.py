"""What can be listed: which objects are images, and the split and label of each."""
