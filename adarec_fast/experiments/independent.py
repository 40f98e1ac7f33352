"""What others report for the paper's systems on the same files, ranking the whole catalogue.

Two groups that run the same public code differ by 5 to 15%, which is more than the error of a mean
over these users; :mod:`.verdict` reads the span. Figures are those of :data:`.paper.METRICS`, None
where a source has no such figure. IOCRec, PDRec, GlobalDiff and DiffDiv have none of their own that
could be compared: other data sets, or ranks among sampled negatives.

Sources: FICLRec (github.com/syf1844803351/FICLRec) and ICSRec (github.com/QinHsiu/ICSRec), tables
of their papers; ICLRec (github.com/salesforce/ICLRec, README), ELCRec (its paper, and logs in
github.com/yueliu1999/ELCRec) and BASRec (test logs in github.com/KingGugu/BASRec) of themselves.
"""

from __future__ import annotations

from typing import NamedTuple

_FICLREC, _ICSREC = "FICLRec's paper", "ICSRec's paper"
_ICLREC, _ELCREC, _BASREC = "ICLRec's README", "ELCRec's paper and logs", "BASRec's logs"


class Reported(NamedTuple):
    """Figures of a system from somewhere else than the ADARec paper."""

    source: str
    figures: tuple[float | None, ...]


INDEPENDENT: dict[str, dict[str, tuple[Reported, ...]]] = {
    "Beauty": {
        "Caser": (Reported(_FICLREC, (0.0159, 0.0097, 0.0427, 0.0172)),),
        "SASRec": (
            Reported(_FICLREC, (0.0338, 0.0217, 0.0800, 0.0346)),
            Reported(_ICSREC, (0.0377, 0.0241, 0.0894, 0.0386)),
        ),
        "BERT4Rec": (Reported(_FICLREC, (0.0436, 0.0287, 0.1005, 0.0447)),),
        "ICLRec": (
            Reported(_ICLREC, (0.0500, 0.0326, 0.1058, 0.0483)),
            Reported(_FICLREC, (0.0440, 0.0288, 0.0935, 0.0426)),
        ),
        "ELCRec": (
            Reported(_ELCREC, (0.0529, 0.0355, 0.1079, 0.0509)),
            Reported(_FICLREC, (0.0498, 0.0341, 0.1048, 0.0497)),
        ),
        "BASRec": (Reported(_BASREC, (0.0548, 0.0371, 0.1145, 0.0539)),),
    },
    "Sports": {
        "SASRec": (Reported(_FICLREC, (0.0185, 0.0119, 0.0453, 0.0194)),),
        "BERT4Rec": (Reported(_FICLREC, (0.0245, 0.0156, 0.0628, 0.0264)),),
        "ICLRec": (
            Reported(_ICLREC, (0.0290, 0.0191, 0.0646, 0.0291)),
            Reported(_FICLREC, (0.0262, 0.0178, 0.0593, 0.0271)),
        ),
        "ELCRec": (
            Reported(_ELCREC, (0.0286, 0.0185, 0.0648, 0.0286)),
            Reported(_FICLREC, (0.0265, 0.0177, 0.0634, 0.0280)),
        ),
        "BASRec": (Reported(_BASREC, (0.0283, 0.0193, 0.0641, 0.0294)),),
    },
    "Toys": {
        "Caser": (Reported(_ICSREC, (0.0205, 0.0125, 0.0542, 0.0221)),),
        "SASRec": (
            Reported(_FICLREC, (0.0434, 0.0294, 0.0853, 0.0412)),
            Reported(_ICSREC, (0.0429, 0.0245, 0.0957, 0.0397)),
        ),
        "BERT4Rec": (
            Reported(_FICLREC, (0.0481, 0.0330, None, 0.0490)),
            Reported(_ICSREC, (0.0371, 0.0259, 0.0760, 0.0368)),
        ),
        "ICLRec": (
            Reported(_ICLREC, (0.0598, 0.0404, 0.1138, 0.0557)),
            Reported(_FICLREC, (0.0555, 0.0395, 0.1063, 0.0538)),
        ),
        "ELCRec": (
            Reported(_ELCREC, (0.0585, 0.0403, 0.1138, 0.0560)),
            Reported(_FICLREC, (0.0579, 0.0406, 0.1139, 0.0565)),
        ),
    },
    "Yelp": {
        "SASRec": (Reported(_FICLREC, (0.0138, 0.0083, 0.0419, 0.0161)),),
        "BERT4Rec": (Reported(_FICLREC, (0.0230, 0.0146, 0.0669, 0.0268)),),
        "ICLRec": (
            Reported(_ICLREC, (0.0240, 0.0153, 0.0659, 0.0270)),
            Reported(_FICLREC, (0.0234, 0.0148, 0.0622, 0.0256)),
        ),
        "ELCRec": (
            Reported(_ELCREC, (0.0236, 0.0150, 0.0653, 0.0266)),
            Reported(_FICLREC, (0.0227, 0.0143, 0.0655, 0.0261)),
        ),
        "BASRec": (Reported(_BASREC, (0.0179, 0.0116, 0.0537, 0.0216)),),
    },
}
