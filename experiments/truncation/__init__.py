"""What matching without truncation is worth: one market, two systems that differ in matching alone."""
