"""Cases of whole training loops: the same net on the same data with each tool, in a process of its own."""

from __future__ import annotations

from case import FLOOR, OURS, Case, Figure, Way
from trackers import CODECARBON, MLFLOW, WANDB

LOOP = """
import json, sys, time
import torch
from torch import nn
{imports}
torch.manual_seed(0)
torch.set_num_threads(1)
{net}
optimizer = torch.optim.Adam(model.parameters())

def epoch(batches):
    for x, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss

def epoch_with_phases(batches, phase):
    for x, y in batches:
        optimizer.zero_grad()
        with phase("forward"):
            loss = nn.functional.cross_entropy(model(x), y)
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            optimizer.step()
    return loss

times, began = [], time.perf_counter()
{loop}
took = time.perf_counter() - began
{after}
times.sort()
told(step_us=times[len(times) // 10] / len(loader) * 1e6, loop_s=took, loss=loss.item())
"""
EACH = """
    start = time.perf_counter()
    loss = {epoch}
    times.append(time.perf_counter() - start)
"""


def plain(epoch: str = "epoch(loader)", more: str = "", epochs: str = "range(EPOCHS)") -> str:
    return f"for number in {epochs}:" + EACH.format(epoch=epoch) + more


DIGITS = """
from sklearn.datasets import load_digits
digits = load_digits()
data = torch.utils.data.TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
"""
NETS = {
    "mlp": DIGITS + "EPOCHS = 80\nmodel = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))",
    "convnet": DIGITS + "EPOCHS = 12\n" + "model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 32, 3, padding=1),"
    " nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1),"
    " nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10))",
    "transformer": """
import this
source = open(torch.functional.__file__, "rb").read()
text = torch.tensor(bytearray(source), dtype=torch.long)[:32_769]
data = torch.utils.data.TensorDataset(text[:-1].reshape(-1, 64), text[1:].reshape(-1, 64))
loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
EPOCHS = 5
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(64, 256)
    def forward(self, x):
        return self.out(self.layers(self.embed(x), mask=nn.Transformer.generate_square_subsequent_mask(64))).transpose(1, 2)
model = Net()
""".replace("import this\n", ""),
}
PROFILER = "from profiler import Profiler\nprof = Profiler('bench', exporter='none')\nprof.start()"
SIMPLE = "from lightning.pytorch.profilers import SimpleProfiler\nsimple = SimpleProfiler()"
SIMPLE_LOOP = """
def simple_epoch(batches):
    batches = iter(batches)
    while True:
        try:
            with simple.profile("data_wait"):
                x, y = next(batches)
        except StopIteration:
            return loss
        optimizer.zero_grad()
        with simple.profile("forward"):
            loss = nn.functional.cross_entropy(model(x), y)
        with simple.profile("backward"):
            loss.backward()
        with simple.profile("optimizer"):
            optimizer.step()
"""
TRACED = """
def traced_epoch(batches):
    for x, y in batches:
        with traceml.trace_step(model):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
    return loss
"""
TORCH = "with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):\n"
ZEUS = "from zeus.monitor import ZeusMonitor\nmonitor = ZeusMonitor(gpu_indices=[])"
OTEL = (
    "from opentelemetry import metrics\nfrom opentelemetry.sdk.metrics import MeterProvider\n"
    "from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader\n"
    "from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor\nimport os\n"
    "exporter = ConsoleMetricExporter(out=open(os.devnull, 'w'))\n"
    "metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=1000)]))\n"
    "SystemMetricsInstrumentor().instrument()"
)


def way(net: str, name: str, whose: str = "peer", needs: str = "", command: tuple[str, ...] = (), **parts: str) -> Way:
    given = {"imports": "", "loop": plain(), "after": "", **parts}
    return Way(name, LOOP.format(net=NETS[net], **given), whose, needs, command)


def ways(net: str) -> tuple[Way, ...]:
    """Return what is compared with every net."""
    return (
        way(net, "the bare loop", FLOOR),
        way(
            net,
            "Epochmeter: prof.train and three phases",
            OURS,
            imports=PROFILER,
            loop=plain("epoch_with_phases(prof.train(loader), prof.phase)"),
            after="prof.stop()",
        ),
        way(
            net,
            "Epochmeter: attach",
            OURS,
            imports=PROFILER,
            loop="prof.attach(model, optimizer)\n" + plain(),
            after="prof.stop()",
        ),
        way(
            net,
            "Epochmeter: attach, epochs and train",
            OURS,
            imports=PROFILER,
            loop="prof.attach(model, optimizer)\n" + plain("epoch(prof.train(loader))", epochs="prof.epochs(EPOCHS)"),
            after="prof.stop()",
        ),
        way(net, "Epochmeter: epochmeter run", OURS, command=("epochmeter", "run", "-q")),
        way(
            net,
            "SimpleProfiler, four phases",
            needs="lightning",
            imports=SIMPLE + SIMPLE_LOOP,
            loop=plain("simple_epoch(loader)"),
        ),
        way(
            net,
            "TraceML trace_step",
            needs="traceml_ai",
            imports="import traceml_ai as traceml\ntraceml.init()" + TRACED,
            loop=plain("traced_epoch(loader)"),
            command=("traceml", "run", "--mode", "summary"),
        ),
        way(
            net,
            "torch.profiler, CPU activities",
            needs="torch",
            loop=TORCH + "\n".join(f"    {line}" for line in plain().splitlines()),
        ),
    )


def trackers(net: str) -> tuple[Way, ...]:
    """Return the tools that watch the machine or log a number an epoch, beside a loop."""
    zeus = "    monitor.begin_window('epoch', sync_execution=False)" + EACH.format(epoch="epoch(loader)")
    return (
        way(
            net,
            "mlflow, a number an epoch and system metrics",
            needs="mlflow",
            imports=MLFLOW,
            loop=plain(more="    mlflow.log_metric('loss', loss.item(), step=number)"),
            after="mlflow.end_run()",
        ),
        way(
            net,
            "wandb offline, a number an epoch and system metrics",
            needs="wandb",
            imports=WANDB,
            loop=plain(more="    run.log({'loss': loss.item()})"),
            after="run.finish()",
        ),
        way(net, "codecarbon, once a second", needs="codecarbon", imports=CODECARBON, after="tracker.stop()"),
        way(
            net,
            "ZeusMonitor, a window an epoch, no GPU",
            needs="zeus",
            imports=ZEUS,
            loop="for number in range(EPOCHS):\n" + zeus + "    monitor.end_window('epoch', sync_execution=False)",
        ),
        way(
            net,
            "OpenTelemetry system metrics, once a second",
            needs="opentelemetry.instrumentation.system_metrics",
            imports=OTEL,
        ),
        way(net, "scalene, CPU alone", needs="scalene", command=("scalene", "run", "--cpu-only", "-o", "scalene.json")),
        way(net, "pyinstrument", needs="pyinstrument", command=("pyinstrument", "-o", "pyinstrument.txt")),
    )


FIGURES = (Figure("step_us", "a step, fastest tenth of the epochs", "us"), Figure("loop_s", "the whole loop", "s"))
GOALS = {
    ("Epochmeter: attach", "step_us"): 1.015,
    ("Epochmeter: prof.train and three phases", "loop_s"): 1.005,
    ("Epochmeter: epochmeter run", "loop_s"): 1.04,
}


TRAINER = (
    """
import logging, time, warnings
warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
import torch
from torch import nn
import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger
{imports}
torch.manual_seed(0)
torch.set_num_threads(1)
"""
    + DIGITS
    + """
class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    def training_step(self, batch, number):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())
class Epochs(pl.Callback):
    times = []
    def on_train_epoch_start(self, trainer, module):
        self.began = time.perf_counter()
    def on_train_epoch_end(self, trainer, module):
        self.times.append(time.perf_counter() - self.began)
trainer = pl.Trainer(max_epochs=30, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                     logger={logger}, callbacks=[Epochs(), {callbacks}], accelerator="cpu", {more})
began = time.perf_counter()
trainer.fit(Net(), loader)
took = time.perf_counter() - began
times = sorted(Epochs.times)
told(step_us=times[len(times) // 10] / len(loader) * 1e6, loop_s=took)
"""
)


def trained(name: str, whose: str = "peer", **parts: str) -> Way:
    given = {"imports": "", "logger": "False", "callbacks": "", "more": "", **parts}
    return Way(name, TRAINER.format(**given), whose, "lightning")


MONITOR = "from lightning.pytorch.callbacks import DeviceStatsMonitor"
lightning = Case(
    "lightning",
    "Lightning's own loop, an MLP on digits",
    (
        trained("the bare Trainer", FLOOR),
        trained(
            "Epochmeter: ProfilerCallback",
            OURS,
            imports="from profiler.adapters.lightning_callback import ProfilerCallback",
            callbacks="ProfilerCallback()",
        ),
        trained("Trainer(profiler='simple')", more="profiler='simple'"),
        trained(
            "DeviceStatsMonitor, each 50 steps to CSV",
            imports=MONITOR,
            callbacks="DeviceStatsMonitor(cpu_stats=True)",
            logger="CSVLogger('logs')",
        ),
    ),
    FIGURES,
)
CASES = (
    Case("mlp", "a training loop with steps of 0.5 ms, an MLP on digits", ways("mlp") + trackers("mlp"), FIGURES, goals=GOALS),
    Case("convnet", "a training loop with steps of 2 ms, a convnet on digits", ways("convnet"), FIGURES),
    Case("transformer", "a training loop with steps of 40 ms, a transformer on text", ways("transformer"), FIGURES),
    lightning,
)
