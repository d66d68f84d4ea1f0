"""What every trainer shares: process groups, checkpoint and resume, progress."""
