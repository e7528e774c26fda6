"""Bytes → pixels → the uint8 image that goes to the device."""
