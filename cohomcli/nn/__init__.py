"""Layers and architectures with exact and spectral sequences, and measures of exactness; see docs/nn.md.

Importing this package registers its architectures with transformers, so that `AutoModel*.from_pretrained` reads them.
"""

from cohomcli.nn.cochain import CochainBlock
from cohomcli.nn.cohomological import CohomologicalModel, CohomologicalTransformer
from cohomcli.nn.cohomological_config import CohomologicalConfig
from cohomcli.nn.exact_attention import ExactSequenceAttention
from cohomcli.nn.exactness import Exactness, MapPair, betti_numbers, measure, measure_pair
from cohomcli.nn.grid import ChunkAttention, Global2DAttention, Local2DAttention, NonLinearTransformerBlock
from cohomcli.nn.local import LocalAttention
from cohomcli.nn.local2d import Grid, local2d_attention
from cohomcli.nn.nonlinear import NonLinearModel, NonLinearTransformer
from cohomcli.nn.nonlinear_config import NonLinearConfig
from cohomcli.nn.registration import register
from cohomcli.nn.rotary import Rotary2DEmbedding
from cohomcli.nn.sequence import ExactSequenceCell, ExactSequencePreservingTransition, SequenceTracker
from cohomcli.nn.spectral import LocalGlobalBlock, SpectralSequenceLayer
from cohomcli.nn.spectrum import SVDTracker
from cohomcli.nn.toy import ToyCohomologicalModel

__all__ = [
    "ChunkAttention",
    "CochainBlock",
    "CohomologicalConfig",
    "CohomologicalModel",
    "CohomologicalTransformer",
    "ExactSequenceAttention",
    "ExactSequenceCell",
    "ExactSequencePreservingTransition",
    "Exactness",
    "Global2DAttention",
    "Grid",
    "Local2DAttention",
    "LocalAttention",
    "LocalGlobalBlock",
    "MapPair",
    "NonLinearConfig",
    "NonLinearModel",
    "NonLinearTransformer",
    "NonLinearTransformerBlock",
    "Rotary2DEmbedding",
    "SVDTracker",
    "SequenceTracker",
    "SpectralSequenceLayer",
    "ToyCohomologicalModel",
    "betti_numbers",
    "local2d_attention",
    "measure",
    "measure_pair",
]

register()
