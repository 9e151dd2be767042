"""What runs inside a jail. Standard library only, Python 3.10 or newer, no import of the rest of the package."""
