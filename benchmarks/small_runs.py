"""Small runs of every method, every aggregation rule and every part of the platform, of seconds each.

`benchmarks.hashes` holds their weights against those of before; tests use them as runs of every method.
"""

from __future__ import annotations

from typing import Any

# keys of the configuration whose spelling may change: stated once
OPTIMIZER, VECTORIZE, QUANTIZE = "optimizer", "vectorize", "quantize"

_MODEL = {"name": "convnet", "width": 8, "depth": 2}
_DIGITS = {
    "source": {"name": "shifted_digits", "train_per_class": 5, "test_size": 60},
    "partition": ["domain"],
}
_TRAINING = {"lr": 0.05, "batch_size": 32}
SUPERVISED: dict[str, Any] = {"method": "supervised", "model": _MODEL, "data": _DIGITS, "training": _TRAINING}
_TOWER = {"width": 16, "layers": 1, "heads": 2}
_VIT = {"width": 12, "depth": 2, "heads": 2}

METHODS: dict[str, dict[str, Any]] = {
    "arra": {
        "method": {
            "llm": {"width": 16, "hidden": 24, "blocks": 2, "heads": 2, "dropout": 0.1},
            "tokenizer": {"codes": 8, "patch": 8, "images": 24},
            "encoder": {"width": 8, "steps": 2, "batch_size": 16}, "judge": {"width": 8, "steps": 2, "batch_size": 16},
            "generation": {"guidance": 2.0, "samples": 8, "gallery": 2},
        },
        "data": {
            "source": {
                "name": "shapecap", "objects": 1, "natural": "color", "unseen_colors": ["cyan", "magenta", "yellow"],
                "train": 48, "test": 12, "composition": 12, "pretrain": 32, "zeroshot": 8,
            },
            "partition": ["natural"],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.003, "batch_size": 8, "local_steps": 2, "clip_norm": 4.0},
    },
    "asit": {
        "method": {
            "rate": 8000, "view_seconds": 0.3, "bins": 16, "patch": 8, "width": 16, "depth": 2, "heads": 2,
            "hidden": 16, "bottleneck": 8, "reconstruction_width": 8, "class_prototypes": 12, "patch_prototypes": 8,
            "momentum": 0.9, "epochs": 6, "warmup_epochs": 1, "temperature_epochs": 2,
        },
        "data": {
            "source": {"name": "sounds", "train": 48, "test": 24, "probe": 24, "seconds": 0.5},
            "partition": [{"name": "iid", "clients": 2}],
        },
        "training": {
            OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2, "clip": "tensor", "clip_norm": 3.0,
        },
    },
    # a round in which the teacher is trained, then images are recovered and students trained on them
    "cda": {
        "method": {
            "squeeze": {"rounds": 1, "flip": False},
            "recover": {"ipc": 2, "iterations": 3, "chunk": 10, "flip": False},
            "post": {"epochs": 4, "batch_size": 10, "flip": False},
        },
        "model": {**_MODEL, "norm": "batch"},
        "data": _DIGITS,
        "training": _TRAINING,
        "federation": {"rounds": 3},
    },
    "dcglr": {
        "method": {
            "local_views": 2, "resolutions": [16], "rotation": "any", "width": 8, "pointnet_widths": [8], "hidden": 16,
            "bottleneck": 8, "prototypes": 12, "momentum": 0.9, "epochs": 4, "warmup_epochs": 1,
        },
        "data": {
            "source": {"name": "shapes", "train": 48, "test": 24, "probe": 30, "points": 32},
            "partition": [{"name": "iid", "clients": 2}],
        },
        "training": {
            OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2, "clip": "tensor", "clip_norm": 3.0,
        },
    },
    "degla": {
        "method": {
            "alpha": 0.9, "held_out": ["replace_relation", "order"], "merge": [["reshuffle", "swap_noun"]],
            "network": {"vision": _TOWER, "text": _TOWER, "projection": 8}, "pretrain": {"steps": 3, "batch_size": 16},
        },
        "data": {
            "source": {
                "name": "shapecap", "train": 64, "test": 24, "composition": 12, "pretrain": 40, "zeroshot": 16,
            },
            "partition": ["natural"],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.003, "batch_size": 8, "local_steps": 2, "schedule": "cosine"},
    },
    "ditto": {"method": {"lam": 0.5}, "model": _MODEL, "data": _DIGITS, "training": _TRAINING},
    "fedlgd": {
        "method": {
            "ipc_local": 3, "ipc_global": 2, "warmup_steps": 2, "dm_steps": 2, "gm_steps": 2, "real_batch": 4,
            "spacing": 1, "updates": 1, "lambda_reg": 1.0,
        },
        "model": _MODEL,
        "data": _DIGITS,
        "training": _TRAINING,
    },
    # models of two widths, and rounds before and after there is a consensus
    "fedmd": {
        "method": {
            "models": [_MODEL, {**_MODEL, "width": 4}], "private_passes": 1, "subset": 20, "public_passes": 1,
        },
        "model": _MODEL,
        "data": {**_DIGITS, "held": {"public": {"share": 0.2}}},
        "training": _TRAINING,
        "federation": {"rounds": 3},
    },
    "fedproto": {
        "method": {"models": [_MODEL, {**_MODEL, "norm": "group"}], "predict": "prototypes"},
        "model": _MODEL,
        "data": _DIGITS,
        "training": _TRAINING,
    },
    "fedrep": {"method": {"head_passes": 2}, "model": _MODEL, "data": _DIGITS, "training": _TRAINING},
    "isa": {
        "method": {"encoder": {"widths": [8, 12, 16]}, "learner": {"tokens": 2, "heads": 2}},
        "data": {
            "source": {"name": "edited_scenes", "train": 48, "test": 24, "gallery": 2, "references": 1},
            "partition": ["natural"],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.003, "batch_size": 8, "local_steps": 2},
    },
    "lgvit": {
        "method": {
            "patch": 2, "width": 16, "depth": 3, "heads": 2, "mlp_ratio": 2, "init_std": 0.2, "exits": [1, 2],
            "aggregation_heads": 2, "joint_rounds": 1, "crop": 0.5, "threshold": 0.4, "timed": 1,
        },
        "data": {
            "source": {"name": "noisy_digits", "size": 10, "train_size": 48, "test_size": 24},
            "partition": [{"name": "iid", "clients": 2}],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.005, "batch_size": 8, "local_steps": 2},
    },
    # a round in which one teacher is trained, then the other, then the student learns from both; the first is also
    # trained on the server
    "hybrid_distill": {
        "method": {
            "patch": 6, "student": _VIT, "feature_teacher": {**_VIT, "rounds": 1},
            "relation_teacher": {
                **_VIT, "steps": 2, "batch_size": 8, "rounds": 1, "decoder_width": 8, "decoder_depth": 1,
                "decoder_heads": 2,
            },
            "epochs": 4, "warmup_epochs": 1,
        },
        "data": {
            "source": {"name": "silhouettes", "train": 32, "test": 16, "teacher": 16, "probe": 0},
            "partition": [{"name": "iid", "clients": 2}],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.002, "weight_decay": 0.05, "batch_size": 8, "local_steps": 2},
        "federation": {"rounds": 4},
    },
    # a round of pre-training, one of fine-tuning, and one in which a model is chosen; one place is unseen
    "fsfm": {
        "method": {
            "patch": 8, "width": 16, "depth": 1, "heads": 2, "rep_depth": 1, "rep_heads": 2, "pixel_width": 12,
            "pixel_depth": 1, "pixel_heads": 2, "projector": [16, 8], "predictor": [16, 8], "momentum": 0.9,
            "finetune": {
                "rounds": 1, "training": {"lr": 0.001}, "warmup": 0.0, "drop_path": 0.0, "choose": "validation",
            },
        },
        "data": {
            "source": {"name": "faces", "domains": 3, "pretrain": 8, "train": 12, "test": 8, "frames": 2, "server": 6},
            "mean": [0.0], "std": [1.0], "partition": ["domain"], "unseen": ["place 3"],
            "validation": {"share": 0.25, "by": "group"},
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2, "clip_norm": 1.0},
        "federation": {"rounds": 3},
    },
    "gpfm": {
        "method": {
            "experts": {
                "nuclei": {"kind": "generated", "knows": "nuclei", "dim": 8, "steps": 2},
                "stroma": {"kind": "generated", "knows": "stroma", "dim": 12, "steps": 2, "patch_weight": 0.0},
            },
            "views": {"size": 24, "local": 2, "local_size": 12, "mean": [0.6], "std": [0.2]},
            "patch": 4, "width": 16, "depth": 1, "heads": 2, "drop_path": 0.1, "head_widths": [16, 8], "prototypes": 12,
            "expert_width": 8, "epochs": 4, "warmup_epochs": 1, "temperature_epochs": 2, "momentum": 0.9, "few": 8,
        },
        "data": {
            "source": {"name": "tiles", "train": 48, "test": 16, "probe": 24, "server_test": 16, "per_slide": 4},
            "mean": [0.0], "std": [1.0], "partition": [{"name": "iid", "clients": 2}],
            "holds": {"0": ["nuclei"], "1": ["nuclei", "stroma"]}, "server_holds": ["stroma"],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2},
    },
    "mmc": {
        "method": {
            "views": {
                "size": 24, "crop": "window", "flip": False, "color": False, "gain": [0.7, 1.3], "noise": 0.1,
                "mean": [0.5], "std": [0.1],
            },
            "drop": 0.7, "align": 4, "patch": 4, "width": 16, "depth": 1, "heads": 2, "drop_path": 0.0,
            "patch_widths": [16, 8], "prototypes": 12, "contrast_widths": [16, 8], "epochs": 4, "warmup_epochs": 1,
            "temperature_epochs": 2, "momentum": 0.9,
        },
        "data": {
            "source": {"name": "materials", "train": 48, "test": 16, "validation": 8, "server_test": 8},
            "mean": [0.0], "std": [1.0], "partition": [{"name": "iid", "clients": 2}],
        },
        "training": {
            OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 8, "local_steps": 2, "clip": "tensor", "clip_norm": 3.0,
        },
    },
    "moon": {"method": {"mu": 1.0, "projection_dim": 8}, "model": _MODEL, "data": _DIGITS, "training": _TRAINING},
    "pat": {
        "method": {
            "patch": 6, "width": 12, "depth": 2, "heads": 3, "mlp_ratio": 2, "neighbors": 2, "pad": 1,
            "warmup_rounds": 1,
        },
        "data": {
            "source": {
                "name": "pedestrians", "sites": 3, "identities": 6, "test_identities": 2, "target_identities": 4,
                "images": 4,
            },
            "partition": ["domain"],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 16},
    },
    "s2_uniseg": {
        "method": {
            "backbone": {"kind": "cosines", "trained": False, "patch": 4, "width": 12},
            "decoder": {
                "instances": 4, "semantics": 3, "width": 32, "heads": 2, "layers": 1, "pixel_layers": 1,
                "feedforward": 16, "pixel_feedforward": 16,
            },
            "views": {"crops": 1, "scale": [0.25, 0.6], "size": 32, "color": False, "mean": [0.0], "std": [1.0]},
            "adapter_width": 4, "head_widths": [16, 8], "prototypes": 10, "init_std": 0.2, "momentum": 0.9, "timed": 1,
        },
        "data": {
            "source": {"name": "rectangles", "train": 12, "test": 6, "server_test": 4},
            "mean": [0.0], "std": [1.0], "partition": [{"name": "iid", "clients": 2}],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.002, "batch_size": 4, "local_steps": 2, "clip_norm": 1.0},
    },
    "supervised": {"model": _MODEL, "data": _DIGITS, "training": {**_TRAINING, OPTIMIZER: "adam", "lr": 0.002}},
    "transkd": {
        "method": {
            "student": {"widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "decoder": 8},
            "teacher": {"widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "decoder": 8},
            "csf_width": 8, "csf_squeeze": 4, "teacher_steps": 3, "teacher_batch": 4,
        },
        "data": {
            "source": {
                "name": "scenes", "train": 13, "test": 6, "teacher": 8, "server_test": 4, "size": 36,
                "conditions": ["fog", "night"],
            },
            "partition": ["domain"],
        },
        "training": {OPTIMIZER: "adamw", "lr": 0.002, "weight_decay": 0.01, "batch_size": 3},
    },
    "vhl": {"method": {"images_per_class": 6}, "model": _MODEL, "data": _DIGITS, "training": _TRAINING},
}  # fmt: skip

STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.1},
    "fednova": {"mu": 0.1, "server_momentum": 0.5},
    "scaffold": {},
    "feddyn": {"alpha": 0.1},
    "fedavgm": {},
    "fedadagrad": {},
    "fedadam": {},
    "fedyogi": {},
    "flower.FedAdagrad": {},
    "flower.FedAdam": {},
    "flower.FedAvg": {},
    "flower.FedAvgM": {"server_momentum": 0.9},
    "flower.FedMedian": {},
    "flower.FedProx": {"proximal_mu": 0.1},
    "flower.FedTrimmedAvg": {},
    "flower.FedYogi": {},
    "flower.Krum": {},
    "flower.MultiKrum": {"num_nodes_to_select": 2},
    "flower.Bulyan": {},
    "flower.QFedAvg": {"client_learning_rate": 0.1, "train_loss_key": "ce"},
}

# what else has a say in the weights of the supervised run
_HALF = {"name": "uniform", "fraction": 0.5}
_GROUP_NORM = {**_MODEL, "norm": "group"}
_SKEWED = {"source": _DIGITS["source"], "partition": [{"name": "dirichlet", "clients": 4, "alpha": 0.3}]}
_DEVICES = {"speed": 200, "speed_spread": 1.0}
PLATFORM: dict[str, dict[str, Any]] = {
    "fedbuff": {
        "federation": {
            "mode": "asynchronous", "asynchronous": {"concurrency": 3, "buffer": 2}, "devices": _DEVICES, "rounds": 4,
        },
    },
    "central": {
        "model": _GROUP_NORM,
        "federation": {"sampler": {"name": "poisson", "probability": 0.8}},
        "privacy": {"name": "central", "clip": 0.5, "adaptive": {}},
    },
    "dp_sgd": {"model": _GROUP_NORM, "privacy": {"name": "dp_sgd", "clip": 0.5, "noise_multiplier": 1.0}},
    "topk": {"exchange": {"compression": [{"name": "topk", "fraction": 0.1}, {"name": QUANTIZE, "bits": 4}]}},
    "fp16": {"exchange": {"compression": ["fp16"]}},
    "vectorized": {"model": {"name": "simple_cnn"}, "engine": {VECTORIZE: 3}},
    "vectorized_moon": {
        "method": {"name": "moon", "projection_dim": 8}, "model": {"name": "simple_cnn"}, "engine": {VECTORIZE: 3},
    },
    "local_norm": {"model": {**_MODEL, "norm": "batch"}, "exchange": {"local": ["norm"]}},
    "weighted": {"data": _SKEWED, "federation": {"sampler": {"name": "weighted", "fraction": 0.5}}},
    "power_of_choice": {"data": _SKEWED, "federation": {"sampler": {"name": "power_of_choice", "fraction": 0.5}}},
    "unseen": {"data": {**_DIGITS, "unseen": 0.2}, "federation": {"sampler": _HALF}},
    "deadline": {
        "federation": {
            "sampler": _HALF, "devices": _DEVICES, "dropout": 0.1, "over_selection": 1.5, "deadline": 1.0,
        },
    },
    "days": {"federation": {"availability": {"period": 4}}},
}  # fmt: skip
