"""What several systems are built from: negatives, augmentation, contrast, intents, mixing.

Every draw is one of the noise contract (:mod:`adarec_fast.rng`), keyed by the step's seed and
counted by the place in the whole batch, so that a resumed run and a worker's share draw the same.
"""
