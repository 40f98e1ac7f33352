"""A SASRec's training and requests beside those of the libraries that a user would pick.

    pip install -e . && pip install -r bench/peers/requirements.txt
    python -m bench.peers --data Beauty.txt [--steps N] [--rounds N] [--epochs N] [--save-results]

Every system trains by its own public means (RecTools and RePlay through Lightning's Trainer) what
is as near to the same as its options go: :class:`.settings.Settings`, full softmax over the
catalogue, every position predicting its next item. Each run is a process of its own, the systems
in turns. Steps are timed in the middle of an epoch, and an epoch is their number times the median.
"""
