"""The figures printed in the paper, to stand beside ours.

Cui, Zhao, Cheng and Zhou, "De-collapsing User Intent: Adaptive Diffusion Augmentation with
Mixture-of-Experts for Sequential Recommendation", AAAI 2026, Tables 1 to 5, copied as they are. The
paper says that it took the figures of its first baselines from ELCRec's paper and ran PDRec,
BASRec, GlobalDiff ("GDiff" in Table 1) and DiffDiv ("DDiv") in a pipeline of its own.
"""

from __future__ import annotations

from typing import NamedTuple

Figures = tuple[float, ...]


class DataSet(NamedTuple):
    """One of the paper's data sets: its file's name in ELCRec's repository, and its size."""

    file: str
    users: int
    items: int


DATA_SETS = {
    "Beauty": DataSet("Beauty", 22_363, 12_101),
    "Sports": DataSet("Sports_and_Outdoors", 35_598, 18_357),
    "Toys": DataSet("Toys_and_Games", 19_412, 11_924),
    "Yelp": DataSet("Yelp", 30_431, 20_033),
}

# Of Tables 1 and 2; Tables 3 and 4 have the last two.
METRICS = ("HR@5", "NDCG@5", "HR@20", "NDCG@20")
# Of Table 5, on an RTX 3090.
COSTS = ("train, s/epoch", "inference, ms/user")

TABLE1: dict[str, dict[str, Figures]] = {
    "Beauty": {
        "Caser": (0.0251, 0.0145, 0.0643, 0.0298),
        "SASRec": (0.0374, 0.0241, 0.0901, 0.0387),
        "BERT4Rec": (0.0360, 0.0216, 0.0984, 0.0391),
        "IOCRec": (0.0408, 0.0245, 0.0916, 0.0444),
        "ICLRec": (0.0495, 0.0326, 0.1072, 0.0491),
        "ELCRec": (0.0529, 0.0355, 0.1079, 0.0509),
        "PDRec": (0.0569, 0.0380, 0.1145, 0.0541),
        "BASRec": (0.0551, 0.0385, 0.1135, 0.0539),
        "GlobalDiff": (0.0563, 0.0382, 0.1129, 0.0531),
        "DiffDiv": (0.0575, 0.0375, 0.1152, 0.0548),
        "ADARec": (0.0600, 0.0403, 0.1187, 0.0568),
    },
    "Sports": {
        "Caser": (0.0154, 0.0114, 0.0399, 0.0178),
        "SASRec": (0.0206, 0.0135, 0.0497, 0.0216),
        "BERT4Rec": (0.0217, 0.0143, 0.0604, 0.0251),
        "IOCRec": (0.0246, 0.0162, 0.0641, 0.0280),
        "ICLRec": (0.0263, 0.0173, 0.0630, 0.0276),
        "ELCRec": (0.0286, 0.0185, 0.0648, 0.0286),
        "PDRec": (0.0325, 0.0218, 0.0701, 0.0328),
        "BASRec": (0.0328, 0.0220, 0.0728, 0.0331),
        "GlobalDiff": (0.0321, 0.0215, 0.0719, 0.0325),
        "DiffDiv": (0.0315, 0.0211, 0.0714, 0.0318),
        "ADARec": (0.0341, 0.0228, 0.0745, 0.0341),
    },
    "Toys": {
        "Caser": (0.0166, 0.0107, 0.0420, 0.0179),
        "SASRec": (0.0463, 0.0306, 0.0941, 0.0441),
        "BERT4Rec": (0.0274, 0.0174, 0.0688, 0.0291),
        "IOCRec": (0.0311, 0.0197, 0.0781, 0.0330),
        "ICLRec": (0.0586, 0.0397, 0.1130, 0.0550),
        "ELCRec": (0.0585, 0.0403, 0.1138, 0.0560),
        "PDRec": (0.0635, 0.0433, 0.1230, 0.0615),
        "BASRec": (0.0648, 0.0431, 0.1245, 0.0618),
        "GlobalDiff": (0.0642, 0.0435, 0.1219, 0.0613),
        "DiffDiv": (0.0645, 0.0428, 0.1225, 0.0605),
        "ADARec": (0.0691, 0.0474, 0.1298, 0.0646),
    },
    "Yelp": {
        "Caser": (0.0142, 0.0080, 0.0406, 0.0156),
        "SASRec": (0.0160, 0.0101, 0.0443, 0.0179),
        "BERT4Rec": (0.0196, 0.0121, 0.0564, 0.0223),
        "IOCRec": (0.0222, 0.0137, 0.0640, 0.0263),
        "ICLRec": (0.0233, 0.0146, 0.0645, 0.0261),
        "ELCRec": (0.0248, 0.0153, 0.0667, 0.0275),
        "PDRec": (0.0253, 0.0159, 0.0688, 0.0280),
        "BASRec": (0.0255, 0.0153, 0.0681, 0.0275),
        "GlobalDiff": (0.0251, 0.0161, 0.0685, 0.0278),
        "DiffDiv": (0.0258, 0.0155, 0.0691, 0.0283),
        "ADARec": (0.0264, 0.0167, 0.0712, 0.0291),
    },
}
TABLE2: dict[str, dict[str, Figures]] = {
    "Beauty": {
        "BASRec": (0.0441, 0.0285, 0.0910, 0.0421),
        "GlobalDiff": (0.0428, 0.0272, 0.0897, 0.0409),
        "DiffDiv": (0.0455, 0.0295, 0.0925, 0.0427),
        "ADARec": (0.0531, 0.0353, 0.1066, 0.0504),
    },
    "Sports": {
        "BASRec": (0.0261, 0.0180, 0.0592, 0.0270),
        "GlobalDiff": (0.0256, 0.0174, 0.0585, 0.0266),
        "DiffDiv": (0.0265, 0.0179, 0.0590, 0.0269),
        "ADARec": (0.0305, 0.0199, 0.0659, 0.0298),
    },
    "Toys": {
        "BASRec": (0.0557, 0.0389, 0.1051, 0.0530),
        "GlobalDiff": (0.0550, 0.0387, 0.1043, 0.0518),
        "DiffDiv": (0.0560, 0.0392, 0.1050, 0.0522),
        "ADARec": (0.0618, 0.0431, 0.1169, 0.0586),
    },
    "Yelp": {
        "BASRec": (0.0194, 0.0121, 0.0528, 0.0217),
        "GlobalDiff": (0.0189, 0.0112, 0.0506, 0.0204),
        "DiffDiv": (0.0190, 0.0119, 0.0522, 0.0209),
        "ADARec": (0.0200, 0.0124, 0.0559, 0.0225),
    },
}
# On two of the data sets. ADARec with ELCRec is Table 1's ADARec.
TABLE3: dict[str, dict[str, Figures]] = {
    "Beauty": {
        "IOCRec": (0.0916, 0.0444),
        "ADARec w/ IOCRec": (0.1053, 0.0501),
        "ICLRec": (0.1072, 0.0491),
        "ADARec w/ ICLRec": (0.1165, 0.0558),
        "ELCRec": (0.1079, 0.0509),
        "ADARec w/ ELCRec": (0.1187, 0.0568),
    },
    "Toys": {
        "IOCRec": (0.0781, 0.0330),
        "ADARec w/ IOCRec": (0.1098, 0.0515),
        "ICLRec": (0.1130, 0.0550),
        "ADARec w/ ICLRec": (0.1271, 0.0628),
        "ELCRec": (0.1138, 0.0560),
        "ADARec w/ ELCRec": (0.1298, 0.0646),
    },
}
TABLE4: dict[str, dict[str, Figures]] = {
    "Beauty": {
        "full": (0.1187, 0.0568),
        "no ADC": (0.1141, 0.0545),
        "no HDA": (0.1105, 0.0528),
        "no ADC, no HDA": (0.1075, 0.0505),
        "no HP-MoE": (0.1128, 0.0539),
        "no content-aware router": (0.1172, 0.0561),
        "no L_cont": (0.1158, 0.0553),
    },
    "Sports": {
        "full": (0.0745, 0.0341),
        "no ADC": (0.0715, 0.0328),
        "no HDA": (0.0681, 0.0310),
        "no ADC, no HDA": (0.0645, 0.0283),
        "no HP-MoE": (0.0702, 0.0321),
        "no content-aware router": (0.0736, 0.0337),
        "no L_cont": (0.0725, 0.0332),
    },
    "Toys": {
        "full": (0.1298, 0.0646),
        "no ADC": (0.1246, 0.0621),
        "no HDA": (0.1189, 0.0592),
        "no ADC, no HDA": (0.1132, 0.0557),
        "no HP-MoE": (0.1225, 0.0610),
        "no content-aware router": (0.1281, 0.0638),
        "no L_cont": (0.1260, 0.0627),
    },
    "Yelp": {
        "full": (0.0712, 0.0291),
        "no ADC": (0.0690, 0.0281),
        "no HDA": (0.0672, 0.0276),
        "no ADC, no HDA": (0.0661, 0.0273),
        "no HP-MoE": (0.0683, 0.0279),
        "no content-aware router": (0.0705, 0.0288),
        "no L_cont": (0.0697, 0.0284),
    },
}
TABLE5: dict[str, dict[str, Figures]] = {
    "Beauty": {
        "SASRec": (2.15, 3.1),
        "ELCRec": (3.81, 5.9),
        "DiffDiv": (7.55, 14.8),
        "GlobalDiff": (8.90, 21.2),
        "ADARec": (6.21, 10.5),
    },
    "Sports": {
        "SASRec": (6.51, 9.5),
        "ELCRec": (11.28, 16.1),
        "DiffDiv": (20.10, 31.5),
        "GlobalDiff": (23.50, 45.8),
        "ADARec": (17.95, 24.9),
    },
    "Toys": {
        "SASRec": (4.32, 6.8),
        "ELCRec": (7.88, 11.5),
        "DiffDiv": (15.60, 22.4),
        "GlobalDiff": (18.95, 33.6),
        "ADARec": (13.52, 18.7),
    },
    "Yelp": {
        "SASRec": (5.25, 7.9),
        "ELCRec": (9.00, 13.2),
        "DiffDiv": (18.23, 26.1),
        "GlobalDiff": (21.75, 38.5),
        "ADARec": (15.88, 19.3),
    },
}
