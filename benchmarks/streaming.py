"""Speed, idle share and memory of whole jobs against length: python benchmarks/streaming.py [FRAMES ...] [--model FILE]

    python benchmarks/streaming.py 100 1000 10000       # 96x64, x2, a tiny random model: all but the model weighs its most
    python benchmarks/streaming.py --real 100 1000      # the bundled sample to and fro (320x180), x4, the model that ships
    python benchmarks/streaming.py --full 300           # the same clip, random weights in the shape of Wan2.1-1.3B
    python benchmarks/streaming.py --gpu                # as a GPU is measured: 100 and 1,000 real, 600 full, 10,000 tiny; two of
                                                        # them once more with x264's preset veryfast

Each length is upscaled by a process of its own: reader, model and writer overlapped, segments joined at the end. Idle is told
three ways: the share of the time in which the model's thread waited for reader or writer (and of that for the reader); of a GPU,
the share of time without a kernel (nvidia-smi, ten samples a second); and the speed of the same frames from memory, without any
file. Whose fault it is: a GPU idles

- for encoder or decoder where the model's thread waits. ``encoder_alone`` and ``decoder_alone`` are what they manage of the
  same frames without a model, ``busy_share`` how long their threads worked in the job. "veryfast" is the same job with an
  encoder that costs a third: what a user does who waits for it.
- for the model's own thread where that is busy: ``model_thread_ms_a_frame``, beside the same without files. Its processor time
  tells work (and waiting for the GPU, which spins) from time in which it could not run: no core, or no lock of Python's.

Resident memory is told for the job's second and last quarter (Linux). Writes ``results/streaming.json``. POSIX only: the peak of
a process is read by ``resource``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, cycle, islice
from pathlib import Path
from statistics import fmean

import av
import torch
from clips import moving_noise, sample_to_and_fro
from memory import HEIGHT, WIDTH
from random_models import save_full_shape

from oasis_core.checkpoints import EMBEDDED, load_checkpoint, resolve, save_checkpoint
from oasis_core.checkpoints.metadata import Metadata
from oasis_core.cli.device import choose_device, choose_dtype
from oasis_core.memory import working_memory
from oasis_core.model import OasisConfig, OasisModel, PixelDecoderConfig
from oasis_core.pipeline import Upscaler, UpscaleSettings
from oasis_core.ready import ready
from oasis_core.routing import RoutingSpec
from oasis_core.video_io import VideoReader, VideoWriter, WriterSettings
from oasis_core.video_job import Done, JobSettings, upscale_video

STATM = Path("/proc/self/statm")
ALONE = 210
"""Frames from memory, at most: 15 chunks."""
CHEAP = "veryfast"
"""x264's preset for those who would not wait for the encoder (``oasis upscale --preset veryfast``)."""
ENCODED = 240
"""Frames of the result that are encoded without a model, at most: two segments."""


@dataclass(frozen=True)
class Case:
    """One job."""

    frames: int
    real: bool
    """The bundled sample and x4, not noise of 96x64 and x2."""
    model: str = ""
    """Checkpoint; empty: the one that ships, or a tiny random one."""
    device: str = "auto"
    full: bool = False
    """Random weights in the full model's shape."""
    preset: str = ""
    """Of x264; empty: ours."""

    @property
    def name(self) -> str:
        size = f"320x180 x4{', full shape' if self.full else ''}" if self.real else f"{WIDTH}x{HEIGHT} x2"
        return f"{self.frames} frames, {size}{f', x264 {self.preset}' if self.preset else ''}"


def random_model(path: Path) -> None:
    """A network of a few thousand weights."""
    config = OasisConfig(
        name="random", unshuffle=(1, 8, 8), latent_channels=4, dim=24, depth=2, heads=2, ffn_dim=24, freq_dim=8,
        decoder=PixelDecoderConfig(width=4, blocks=1, hr_width=4, hr_blocks=0),
    )  # fmt: skip
    torch.manual_seed(0)
    save_checkpoint(path, OasisModel(config), Metadata(config, RoutingSpec.by_ratio(2, 2, 0.5, 0.5), "Apache-2.0"))


def resident_mib() -> float:
    """What this process holds now."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize() / 2**20


def _name_for_smi(device: torch.device) -> str:
    """nvidia-smi numbers all GPUs, torch those that CUDA_VISIBLE_DEVICES leaves."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


class GpuIdle:
    """Share of time without a kernel while the block runs, as nvidia-smi tells; None where it does not."""

    def __init__(self, device: torch.device) -> None:
        self.share: float | None = None
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
        found = shutil.which("nvidia-smi") if device.type == "cuda" else None
        self._command = None if found is None else [found, *query, "-i", _name_for_smi(device)]

    def __enter__(self) -> GpuIdle:
        if self._command is not None:
            self._smi = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._command is not None:
            self._smi.terminate()
            busy = [float(line) for line in self._smi.communicate()[0].split() if line.strip().isdigit()]
            self.share = None if not busy else round(1 - fmean(busy) / 100, 4)


@dataclass
class Spent:
    """What a stretch of work took: by the clock, of the calling thread's processor time, and of all threads'."""

    seconds: float = 0.0
    thread: float = 0.0
    process: float = 0.0

    @contextmanager
    def over(self) -> Iterator[None]:
        began = time.perf_counter(), time.thread_time(), time.process_time()
        yield
        ended = time.perf_counter(), time.thread_time(), time.process_time()
        self.seconds, self.thread, self.process = (b - a for a, b in zip(began, ended, strict=True))


def alone(upscaler: Upscaler, clip: Path, frames: int) -> dict[str, float | None]:
    """From memory to nowhere, after some to warm up."""
    held = [frame.rgb for frame in islice(VideoReader(clip), 48)]
    device = upscaler.model.project.weight.device
    count, spent = min(frames, ALONE), Spent()
    for _ in upscaler.stream(held):  # not as in a job: whole frames come to the host, which one thread copies slowly
        pass
    with GpuIdle(device) as idle, spent.over():
        for _ in upscaler.stream(islice(cycle(chain(held, held[-2:0:-1])), count)):
            pass
    return {
        "frames_per_second_without_files": round(count / spent.seconds, 2),
        "model_thread_ms_a_frame_without_files": ms(spent.seconds / count),
        "model_thread_processor_ms_a_frame_without_files": ms(spent.thread / count),
        "idle_share_of_the_gpu_without_files": idle.share,
    }


def decoder_alone(clip: Path) -> dict[str, float | None]:
    """Frames a second of the clip: out of the codec, and as the reader gives them (RGB, fp32)."""
    codec, reader, count = Spent(), Spent(), 0
    with codec.over():
        count = sum(1 for _ in islice(VideoReader(clip).pictures(), 1000))
    with reader.over():
        sum(1 for _ in islice(VideoReader(clip), count))
    return {
        "decoder_alone_frames_per_second": round(count / codec.seconds, 1),
        "reader_alone_frames_per_second": round(count / reader.seconds, 1),
    }


def encoder_alone(clip: Path, made: Path, segment: int, settings: WriterSettings) -> dict[str, float | None]:
    """Frames a second of the result, decoded beforehand: as one file, and as segments of a job's length."""
    with av.open(str(made)) as container:
        frames = list(islice(container.decode(video=0), ENCODED))
    source, size = VideoReader(clip).info, (frames[0].width, frames[0].height)
    step = round(1 / (source.rate * source.time_base))
    found: dict[str, float | None] = {}
    for name, length in (("one_file", len(frames)), ("segments", segment)):
        spent = Spent()
        with spent.over():
            for begin in range(0, len(frames), length):
                with VideoWriter(made.with_name("again.mp4"), *size, source, settings) as writer:
                    for number, frame in enumerate(frames[begin : begin + length]):
                        frame.pict_type = av.video.frame.PictureType.NONE  # else the encoder repeats what it was
                        writer.add(frame, number * step + writer.first_pts)
        found[f"encoder_alone_frames_per_second_{name}"] = round(len(frames) / spent.seconds, 1)
        found[f"encoder_alone_processor_ms_a_frame_{name}"] = ms(spent.process / len(frames))
    return found


def ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def shares(done: Done, spent: Spent) -> dict[str, float | None]:
    """Where a job's time went."""
    waited = done.waited + done.joining
    return {
        "frames_per_second": round(done.frames / done.seconds, 2),
        "idle_share_of_the_model_thread": round(done.waited / done.seconds, 4),
        "of_that_for_the_reader": round(done.waited_for_reader / done.seconds, 4),
        "joining_share": round(done.joining / done.seconds, 4),
        "busy_share_of_the_reader_thread": round(done.reading / done.seconds, 4),
        "busy_share_of_the_writer_thread": round(done.writing / done.seconds, 4),
        "model_thread_ms_a_frame": ms((done.seconds - waited) / done.frames),
        "model_thread_processor_ms_a_frame": ms(spent.thread / done.frames),
        "cores_busy": round(spent.process / spent.seconds, 2),
        "cores": os.cpu_count(),
    }


def measure(case: Case, clip: Path) -> dict[str, float | None]:
    """One job in this process."""
    resident: list[float] = []

    def note(done: float, total: int | None) -> None:
        if STATM.exists() and done > len(resident) * 10:
            resident.append(resident_mib())

    settings = WriterSettings(preset=case.preset or None)
    place, job = choose_device(case.device), JobSettings()
    checkpoint = load_checkpoint(Path(case.model), place, choose_dtype("auto", place))
    scale = UpscaleSettings(scale=4.0 if case.real else 2.0)
    upscaler = ready(checkpoint, checkpoint.routing, scale, "auto", False)
    without = alone(upscaler, clip, case.frames)
    reader, made, spent = VideoReader(clip), clip.with_name("out.mp4"), Spent()
    needs = working_memory(upscaler, case.frames, reader.info.height, reader.info.width)
    needs += sum(p.numel() * p.element_size() for p in checkpoint.model.parameters())
    with GpuIdle(place) as idle, spent.over():
        done = upscale_video(reader, made, upscaler, settings, note, job=job)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    result = shares(done, spent) | without | {"peak_host_mib": round(peak, 1)}
    quarter = len(resident) // 4
    if quarter:
        result["resident_mib_second_quarter"] = round(fmean(resident[quarter : 2 * quarter]), 1)
        result["resident_mib_last_quarter"] = round(fmean(resident[3 * quarter :]), 1)
    if place.type == "cuda":
        result["idle_share_of_the_gpu"] = idle.share
        result["predicted_device_mib"] = round(needs / 2**20, 1)
        result["peak_device_mib"] = round(torch.cuda.max_memory_allocated(place) / 2**20, 1)
    return result | decoder_alone(clip) | encoder_alone(clip, made, job.segment_frames, settings)


def run(case: Case) -> dict[str, float | None]:
    """In a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        clip, model = Path(folder) / "in.mp4", Path(folder) / "random.safetensors"
        if case.real:
            sample_to_and_fro(clip, case.frames)
        else:
            moving_noise(clip, case.frames, WIDTH, HEIGHT)
        if case.full:
            save_full_shape(model)
        elif not case.model and not case.real:
            random_model(model)
        given = case.model or str(resolve(EMBEDDED) if case.real and not case.full else model)
        text = json.dumps(asdict(case) | {"model": given})
        argv = [sys.executable, __file__, "--clip", str(clip), "--case", text]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--real", action="store_true", help="the bundled sample, x4, the model that ships")
    parser.add_argument("--full", action="store_true", help="likewise, random weights in the full model's shape")
    parser.add_argument(
        "--gpu", action="store_true", help="100 and 1,000 frames real, 600 full, 10,000 of the tiny model"
    )
    parser.add_argument("--model", default="", help="checkpoint (default: the one that ships, or a tiny random one)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--preset", default="", help=f"of x264, such as {CHEAP} (default: ours)")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "streaming.json")
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.clip is not None:  # a process of its own for each length
        print(json.dumps(measure(Case(**json.loads(args.case)), args.clip)))
        return
    real = args.real or args.full
    cases = [Case(frames, real, args.model, args.device, args.full, args.preset) for frames in args.frames]
    if args.gpu:
        real, full = Case(1000, True, args.model, args.device), Case(600, True, "", args.device, full=True)
        cases = [replace(real, frames=100), real, replace(real, preset=CHEAP), full, replace(full, preset=CHEAP)]
        cases.append(Case(10000, False, "", args.device))
    place = choose_device(args.device)
    chip = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{torch.get_num_threads()} threads"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    report = {
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/streaming.py", *sys.argv[1:]]),
        "machine": f"{platform.system()} {platform.machine()}, {place.type}, {chip}, torch {torch.__version__}",
        "what": "whole jobs, h264; x4: the bundled sample, the model that ships; x2: noise, a tiny random model",
        "results": {},
    }
    for case in cases:
        report["results"][case.name] = run(case)
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(case.name, json.dumps(report["results"][case.name]), flush=True)


if __name__ == "__main__":
    main()
