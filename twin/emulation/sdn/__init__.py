"""Software-defined networking: OpenFlow applications on os-ken that control the switches of a run.

Import-light: os-ken is imported only in the program :mod:`twin.emulation.sdn.launch`, which runs as a
process of its own.
"""
