"""What the device is: frozen states and pure functions. Read `device.py` first."""
