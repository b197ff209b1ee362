"""A small study from end to end: train, analyse, prune, verify, fine-tune, save, reload, time, report.

Run it with ``python -m secateur.demo``. It takes a minute or so on one core and needs no network.
"""
