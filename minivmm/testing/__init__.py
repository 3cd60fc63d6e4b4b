"""Fakes and the driver's side of devices: public, used by our own tests."""
