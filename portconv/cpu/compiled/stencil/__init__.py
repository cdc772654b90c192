"""The compiled `direct` for depthwise layers whose rows lie side by side in memory."""
