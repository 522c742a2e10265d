"""What has to run, in which order, and by how many workers."""
