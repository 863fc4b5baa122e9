"""Tell transformers about our architectures, so that AutoConfig and AutoModel* read folders of them.

`cohomcli.models.own` decides from a folder's `model_type` when to import this.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from cohomcli.nn.cohomological import CohomologicalModel, CohomologicalTransformer
from cohomcli.nn.cohomological_config import CohomologicalConfig
from cohomcli.nn.nonlinear import NonLinearModel, NonLinearTransformer
from cohomcli.nn.nonlinear_config import NonLinearConfig


def register() -> None:
    """Register both architectures; a second call changes nothing."""
    for config, backbone in ((CohomologicalConfig, CohomologicalModel), (NonLinearConfig, NonLinearModel)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, backbone, exist_ok=True)
    AutoModelForCausalLM.register(CohomologicalConfig, CohomologicalTransformer, exist_ok=True)
    AutoModelForMaskedLM.register(CohomologicalConfig, CohomologicalTransformer, exist_ok=True)
    AutoModelForMaskedLM.register(NonLinearConfig, NonLinearTransformer, exist_ok=True)
