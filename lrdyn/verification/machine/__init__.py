"""What computes: devices, the settings of the process, compiled programs on disk."""
