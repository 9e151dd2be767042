"""Run programs that nobody has read, and judge them where they cannot reach."""
