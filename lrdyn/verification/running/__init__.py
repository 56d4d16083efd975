"""From a configuration to arrays: jobs, sweeps, programs, and their labels."""
