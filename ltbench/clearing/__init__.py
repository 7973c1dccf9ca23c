"""What lies below the scratch root, which of it may go, and letting it go: the work behind `gc`.

items.py        one thing on disk, how large it is, what becomes of it and why
living.py       who works on cells now, or is about to
inventory.py    everything that there is, judged
removing.py     what was judged to go, taken away
"""
