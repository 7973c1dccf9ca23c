"""What a benchmark costs, before it is queued: time, operations, bytes and files. No torch here.

size.py       a network's parameters and operations, in closed form
work.py       how much a cell asks for: network rows, images, stages
space.py      bytes and files, in the store and under the scratch root
rates.py      what a device is assumed to do, where nothing was measured
calibrations.py  what was measured on a device (by ltbench/calibrate.py), kept in the store
estimate.py   all of it together: hours, segments, bytes and files of a cell and of a grid
"""
