"""Exits for a transformer that knows nothing of them: train, calibrate, export, predict."""

import tempfile

import torch
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

import anynest
from anynest.data import load, make_loader
from anynest.engines.onnx.export.export import export
from anynest.predict import Confidence, HeldOut, calibrate

torch.manual_seed(0)
data = load("digits")
sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
widths = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
body = ViTForImageClassification(
    ViTConfig(**sizes, **widths, num_hidden_layers=3, initializer_range=0.1)
)
blocks = [name for name, part in body.named_modules() if type(part).__name__ == "ViTLayer"]
model = anynest.add_exits(
    body, torch.zeros(2, 1, 8, 8), 10, after=dict.fromkeys(blocks[:2], "mean"), output="logits"
)

combiner, optimizer = anynest.OSGD(), torch.optim.AdamW(model.parameters(), lr=2e-3)
batches = make_loader(data.train, 16, train=True, augment="none", mean=data.mean, std=data.std)
for epoch in range(2):
    for images, labels in batches.batches(epoch):
        losses = [cross_entropy(logits, labels) for logits in model(images)]
        combiner.backward(losses, model.parameters())
        optimizer.step()
        optimizer.zero_grad()

held_out, test = (
    list(make_loader(part, 64, train=False, mean=data.mean, std=data.std).batches(0))
    for part in (data.validation, data.test)
)
with anynest.AnytimePredictor(model.eval()) as predictor:
    policy, report = calibrate(
        Confidence(), HeldOut.collect(predictor, held_out), target_accuracy=0.9
    )
with tempfile.TemporaryDirectory() as folder:
    export(model, folder, example=dict(zip(model.input_names, [test[0][0]], strict=True)))
    with anynest.AnytimePredictor(folder) as predictor:  # on ONNX Runtime, a graph a stage
        found = [predictor.predict(x, deadline=1.0, policy=policy) for x, _ in test]
predicted = torch.tensor([label for prediction in found for label in prediction.labels])
accuracy = (predicted == torch.cat([labels for _, labels in test])).double().mean()
print(report)
print(f"test images: accuracy {accuracy:.3f} with the same thresholds")
