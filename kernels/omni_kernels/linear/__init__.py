"""The quantised linear layer: 8-bit weights in groups of 32."""
