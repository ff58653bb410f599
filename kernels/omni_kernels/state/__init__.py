"""Snapshot, restore and copy-on-write of sequence state.

On CPUs a slot is one ``Tensor.copy_``; on a card ``triton_copy`` does many slots, all layers and
both kinds of state in one launch.
"""
