"""From a LightningModule: other norms and another optimizer; the rest stays. Needs lightning."""

import lightning
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from largebatch.nn import convert_batch_norm, merge_running_stats
from largebatch.optim import LARS, param_groups


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        network = nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(8 * 36, 4)),
        )
        self.network = convert_batch_norm(network, "ghost", ghost_size=16)
        self.losses: list[float] = []

    def training_step(self, batch, number):
        images, labels = batch
        loss = cross_entropy(self.network(images), labels)
        self.losses.append(float(loss.detach()))
        return loss

    def on_train_epoch_end(self):
        merge_running_stats(self.network)  # before the validation of the epoch, on every rank

    def configure_optimizers(self):
        return LARS(param_groups(self.network, weight_decay=1e-4), lr=1.0, momentum=0.9)


torch.manual_seed(0)
images = torch.randn(256, 1, 8, 8)
loader = DataLoader(TensorDataset(images, images[:, 0, :2, :2].flatten(1).argmax(1)), 64)
model = Classifier()
trainer = lightning.Trainer(
    max_epochs=10,
    gradient_clip_val=1.0,  # clips before step(), as for torch's optimizers
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, loader)
assert model.losses[-1] < model.losses[0], model.losses
print(f"loss {model.losses[0]:.3f}, then {model.losses[-1]:.3f}")
