"""Speech decoders behind one contract."""
