"""Partitions of an edge server: aarch64 guests of QEMU under the vManager of NANCY D3.4 §3.

``vmand`` (:mod:`.daemon`) keeps them, ``vmanctl`` (:mod:`.client`) asks it to, :mod:`.protocol` is what
the two say to each other.
"""
