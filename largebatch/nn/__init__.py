"""Normalisation layers and losses for large batches.

A ghost batch is a small, fixed group of samples whose statistics a batch norm uses, whatever the
batch size. This package has ghost batch norm and its relatives, norms without batch statistics,
fixed classifiers and contrastive losses over several ranks. Running statistics need no
communication during training. The package needs torch and nothing else.
"""

from largebatch.nn.batch_channel_norm import BatchChannelNorm
from largebatch.nn.config import NormConfig
from largebatch.nn.contrast_in_passes import contrast_in_passes, losses_of_passes
from largebatch.nn.contrastive_loss import contrastive_loss
from largebatch.nn.convert import (
    apply_norm,
    check_norm,
    convert_batch_norm,
    spans_ranks,
    wrong_span,
)
from largebatch.nn.fixed_classifier import FixedClassifier, find_classifier, fix_classifier
from largebatch.nn.followers import FOLLOWERS
from largebatch.nn.frozen import frozen_statistics
from largebatch.nn.fuse import fuse, unfuse
from largebatch.nn.ghost_batch_norm import GhostBatchNorm
from largebatch.nn.ghosts import ghost_sizes, has_batch_norm, minimum_samples
from largebatch.nn.hidden_mixing import hidden_mixing, mix_blocks
from largebatch.nn.l1_batch_norm import L1BatchNorm
from largebatch.nn.linf_batch_norm import LInfBatchNorm
from largebatch.nn.merge import (
    load_rank_statistics,
    merge_running_stats,
    merged_running_stats,
    rank_statistics,
)
from largebatch.nn.over_ghosts import observable_norms, ties_ranks, ties_samples
from largebatch.nn.place import current_place, ghost_place, ghost_rows
from largebatch.nn.registry import NormFacts, norms
from largebatch.nn.running import discard_step, keep_running, step_end
from largebatch.nn.sample_norm import SampleNorm
from largebatch.nn.scaled_ws_conv import ACTIVATION_GAINS, ScaledWSConv2d, SkipInit
from largebatch.nn.sync_batch_norm import SyncBatchNorm, join_ranks
from largebatch.nn.topk_batch_norm import TopKBatchNorm
from largebatch.nn.weight_norm import BoundedWeightNorm, ChannelBias, WeightNorm, normalize_weights

__all__ = [
    "ACTIVATION_GAINS",
    "FOLLOWERS",
    "BatchChannelNorm",
    "BoundedWeightNorm",
    "ChannelBias",
    "FixedClassifier",
    "GhostBatchNorm",
    "L1BatchNorm",
    "LInfBatchNorm",
    "NormConfig",
    "NormFacts",
    "SampleNorm",
    "ScaledWSConv2d",
    "SkipInit",
    "SyncBatchNorm",
    "TopKBatchNorm",
    "WeightNorm",
    "apply_norm",
    "check_norm",
    "contrast_in_passes",
    "contrastive_loss",
    "convert_batch_norm",
    "current_place",
    "discard_step",
    "find_classifier",
    "fix_classifier",
    "frozen_statistics",
    "fuse",
    "ghost_place",
    "ghost_rows",
    "ghost_sizes",
    "has_batch_norm",
    "hidden_mixing",
    "join_ranks",
    "keep_running",
    "load_rank_statistics",
    "losses_of_passes",
    "merge_running_stats",
    "merged_running_stats",
    "minimum_samples",
    "mix_blocks",
    "normalize_weights",
    "norms",
    "observable_norms",
    "rank_statistics",
    "spans_ranks",
    "step_end",
    "ties_ranks",
    "ties_samples",
    "unfuse",
    "wrong_span",
]
