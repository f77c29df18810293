"""An encoder with a projection head, for contrastive learning.

Chen et al. 2020 (SimCLR), sections 2.1 and 4.2: the loss is computed from ``z = W2 relu(W1 h)``,
where h is the encoder's output. After training h is used and evaluated.
"""

from __future__ import annotations

from torch import Tensor, nn

from largebatch._errors import UserError
from largebatch.nn import find_classifier


class Projected(nn.Module):
    """A classification model whose last linear layer is replaced by two with a ReLU between.

    Args:
        encoder: the model; its last linear layer is removed.
        hidden: width between the two layers; None: the number of features.
        width: width of the projections.

    Raises:
        UserError: the model has no linear layer.
    """

    def __init__(self, encoder: nn.Module, hidden: int | None, width: int) -> None:
        super().__init__()
        name = find_classifier(encoder)
        last = None if name is None else encoder.get_submodule(name)
        if name is None or not isinstance(last, nn.Linear):
            there = "none" if name is None else f"a {type(last).__name__}"
            raise UserError(
                f"model: the last linear layer gives way to a projection head; there is {there}"
            )
        if name:
            encoder.set_submodule(name, nn.Identity())
        else:
            encoder = nn.Flatten()
        features = last.in_features
        middle = hidden or features
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.Linear(features, middle), nn.ReLU(), nn.Linear(middle, width, bias=False)
        )

    def forward(self, images: Tensor, project: bool = True) -> Tensor:
        """Return the projections (N, width) of images, or the features (N, features)."""
        features: Tensor = self.encoder(images)
        return self.head(features) if project else features
