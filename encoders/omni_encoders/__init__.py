"""Streaming encoders: audio, images and video become spans."""
