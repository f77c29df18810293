"""From DeepSpeed: a ds_config.json goes on to be read. Needs deepspeed; trains on one process."""

import json
from pathlib import Path

from largebatch.train import run
from largebatch.train.parse import parse

Path("ds_config.json").write_text(
    json.dumps(
        {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_clipping": "auto",
            "zero_optimization": {"stage": 1},
        }
    )
)
outcome = run(
    parse(
        [
            "--distributed.engine=deepspeed",
            "--distributed.deepspeed_config=ds_config.json",
            "--optim.name=lamb",
            "--optim.preset=deepspeed",
            "--optim.lr=0.3",
            "--schedule.length=2ep",
            "--run.dir=by_deepspeed",
        ]
    )
)
assert outcome.finished
assert outcome.summary["loss"] < 2.0, outcome.summary
print(f"loss {outcome.summary['loss']:.3f} after {outcome.samples} samples")
