"""The compiled `depthwise`."""
