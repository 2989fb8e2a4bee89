"""Other ways than one process on one device to make a job's segments. Nothing here is needed for that one."""
