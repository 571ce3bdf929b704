"""Times on a device that is not here, from what its graphs cost and what public measurements say of chips like it.

- A tower on a Hexagon: Qualcomm's published latencies (calibration.json: encode), with the chip's own effects where it
  was measured and those of its Hexagon's version elsewhere.
- A tower on a Neural Engine: the share of the peak that Apple's FastViT attains by its model cards.
- A tower on a CPU or a GPU: the share of the peak that few towers attain on CPUs.
- A decoder under ONNX Runtime: what llama.cpp attains of the memory's bandwidth and the processor's peak (decode,
  prefill), on the chip itself where it was measured, and elsewhere as the population does.
- A decoder under Core ML: the same forms scaled to the one figure that is published, of a 0.5B model on an M4 Pro.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from stages.devices.calibration import Calibration, Estimate, Levels, Model, calibration
from stages.devices.hardware import CPU, GPU, NPU, decoder_processor, hexagon, peak, processors, tower_processor
from stages.devices.operators import DECODE, ENCODER, PREFILL
from stages.devices.work import Work, cache_bytes, work_of
from stages.models.vlm import ModelConfig
from stages.schema import DeviceProfile, Runtime

# By what the logarithms of an interval are multiplied, a judgement: for another runtime than the measured one, and for
# a chip of another maker, of whose like nothing was measured.
OTHER_RUNTIME, OTHER_MAKER = 1.25, 1.5

# A third party's FastVLM 0.5B in float16 under Core ML on an M4 Pro: 3,901 tokens of a prompt and 113 of an answer a
# second. Of Qwen2 0.5B, the tokens' weights without the table of embeddings, and with its use as the output head.
_ANCHOR_LAYERS, _ANCHOR_BLOCK, _ANCHOR_WEIGHTS = 24, 357.9e6, 494.0e6
_ANCHOR_BANDWIDTH = 273.0  # of the M4 Pro, as conf/device/base has it, with its peaks:
_ANCHOR_PEAKS = {NPU: 19000.0, GPU: 6020.0, CPU: 1318.4}
_ANCHOR_TOKEN_MS, _ANCHOR_PROMPT_MS = 1e3 / 113, 1e3 / 3901
# Apple's coreml-FastViT model cards, on the Neural Engine: T8 (0.7 x 10^9 multiplications with additions) takes 0.79 ms
# on an iPhone 12 Pro Max and 0.62 on an M3 Max, MA36 (7.8) 4.50 and 2.99: 0.35 and 0.33 of 11,000 and 18,000 x 10^9
# operations a second, and 0.4 ms. The interval is a judgement, since that is two models of one kind: what falls back to
# the CPU takes longer.
_ENGINE_SHARE, _ENGINE_LAUNCH_MS, _ENGINE_LOW, _ENGINE_HIGH = 0.34, 0.4, 1 / 1.6, 2.5
_ENGINE_UNKNOWN_LOW = 0.08  # where a Neural Engine's peak is not known, and it may be so much faster than the GPU
# What an operator takes beside its work on a CPU or a GPU, in microseconds: ONNX Runtime took 48 on the build machine
# for 21 operators of next to no work (stages/devices/host.py).
_OPERATOR_US = 2.3
# GPUs' speed, beside a usual one's float32 peak, and what their memory's bandwidth is then (benchmarks/predictors).
_GPU_GFLOPS = 3000.0

_CPU_PATH, _GPU_PATH, _NPU_PATH = "geniex_llamacpp/cpu", "geniex_llamacpp/gpu", "geniex_qairt/npu"
_PATHS = {CPU: _CPU_PATH, GPU: _GPU_PATH, NPU: _NPU_PATH}


@dataclass(frozen=True)
class Times:
    """Milliseconds: of one image (None: no tower), of a prompt with it, of each token by the context's length."""

    encode: Estimate | None
    prefill: Estimate
    tokens: Mapping[int, Estimate]


class Timer:
    """Predicts times on one device, of which enough is known (hardware.check_predictable)."""

    def __init__(self, device: DeviceProfile, known: Calibration | None = None):
        self._device = device
        self._calibration = known or calibration()
        tower, decoder = tower_processor(device), decoder_processor(device)
        assert tower is not None and decoder is not None and device.hardware.bandwidth_gb_s is not None
        self._tower, self._decoder = tower, decoder
        self._bandwidth = device.hardware.bandwidth_gb_s
        self._coreml = device.runtime is Runtime.coreml
        self._measured = self._calibration.chips.get(device.hardware.soc or "")  # "Hexagon's version/number"
        version = int(self._measured.partition("/")[0]) if self._measured else None
        self._version = device.hardware.htp_version or version
        ahead = processors(device)[: processors(device).index(tower)]
        self._engine_unknown = self._coreml and NPU in ahead

    def times(
        self, model: ModelConfig, sizes: Mapping[str, int], *, contexts: tuple[int, ...], text_tokens: int
    ) -> Times:
        """contexts: lengths at which a token is predicted; the last is the whole. Raises StageError as work_of does."""
        work = work_of(model, sizes, self._device.runtime, context=contexts[-1], text_tokens=text_tokens)
        assert model.text is not None
        prompt = text_tokens + (model.vision.tokens if model.vision else 0)
        tokens = {context: self._token(model, work[DECODE], context) for context in contexts}
        prefill = self._prefill(model, work[PREFILL], prompt, self._token(model, work[DECODE], prompt))
        return Times(self._encode(model, work[ENCODER]) if model.vision else None, prefill, tokens)

    def basis(self) -> dict[str, str]:
        """On what encode, prefill and decode rest, a sentence each."""
        decoder = self._basis_of_decoder()
        return {"encode": self._basis_of_tower(), "prefill": decoder, "decode": decoder}

    def _encode(self, model: ModelConfig, work: Work) -> Estimate:
        assert model.vision is not None
        if self._tower != NPU:
            return self._share_of_peak(work)
        if self._coreml:
            return self._neural_engine(work)
        features = {
            "launch": 1.0,
            "operators": float(work.operators),
            "gigaflops": work.gigaflops,
            "megaparameters": work.megaparameters,
            "megapixels": model.vision.image_size**2 / 1e6,
            "given_parameters": 1e6 * work.megaparameters,
            "given_pixels": float(model.vision.image_size**2),
            "known": 2.0,
            "version": float(self._version or 0),
        }
        fitted = self._calibration.models["encode"]
        situation = {"unit": NPU, "precision": "float", "runtime": "onnx", **self._chip(fitted)}
        return fitted.estimate(features, situation, f"{self._known(fitted)}, npu, published")

    def _neural_engine(self, work: Work) -> Estimate:
        speed = peak(self._device.hardware, NPU)
        assert speed is not None
        computed = max(work.gigaflops / speed, work.megabytes / 1e3 / self._bandwidth) / _ENGINE_SHARE * 1e3
        value = computed + _ENGINE_LAUNCH_MS
        return Estimate(value, _ENGINE_LOW * value, _ENGINE_HIGH * value, judged=True)

    def _share_of_peak(self, work: Work) -> Estimate:
        """On a CPU or a GPU: the share of its peak that few measured towers attained on CPUs."""
        speed = peak(self._device.hardware, self._tower)
        assert speed is not None
        constants = self._calibration.constants
        share = constants["encode_cpu_share"]
        computed = max(work.gigaflops / speed, work.megabytes / 1e3 / self._bandwidth) / share * 1e3
        value = computed + work.operators * self._operator_ms()
        low = (share / constants["encode_cpu_share_high"]) ** OTHER_MAKER
        high = (share / constants["encode_cpu_share_low"]) ** OTHER_MAKER
        return Estimate(
            value, (_ENGINE_UNKNOWN_LOW if self._engine_unknown else low) * value, high * value, judged=True
        )

    def _token(self, model: ModelConfig, work: Work, context: int) -> Estimate:
        assert model.text is not None
        cached = cache_bytes(model, self._device.runtime, context=context)
        features = {
            "operators": float(model.text.num_hidden_layers),
            "weights_ms": work.megabytes / self._bandwidth,
            "cache_ms": cached / self._bandwidth / 1e6,
        }
        fitted = self._calibration.models["decode"]
        path = _CPU_PATH if self._coreml else _PATHS[self._decoder]
        found = self._of_path(fitted, features, path)
        if not self._coreml:
            return found
        anchor = {
            "operators": float(_ANCHOR_LAYERS),
            "weights_ms": 2 * _ANCHOR_WEIGHTS / 1e6 / _ANCHOR_BANDWIDTH,
            "cache_ms": 0.0,
        }
        return found.times(_ANCHOR_TOKEN_MS / self._of_path(fitted, anchor, path).value)

    def _prefill(self, model: ModelConfig, work: Work, prompt: int, token: Estimate) -> Estimate:
        """Of the whole prompt, and no less than a token of its length, which reads all weights too."""
        assert model.text is not None
        text = model.text
        attention = 2 * 2 * text.num_hidden_layers * text.num_attention_heads * text.head_dim * prompt / 1e9
        computed = max(work.gigaflops / prompt - attention, 0.0)
        fitted = self._calibration.models["prefill"]
        path = _NPU_PATH if self._coreml else _PATHS[self._decoder]
        speed = self._speed(self._decoder)
        features = {
            "operators": float(text.num_hidden_layers),
            "compute": computed / speed,
            "attention": attention / speed,
        }
        found = self._of_path(fitted, features, path)
        if self._coreml:
            anchor = {
                "operators": float(_ANCHOR_LAYERS),
                "compute": 2 * _ANCHOR_BLOCK / 1e9 / self._coreml_speed(NPU, _ANCHOR_PEAKS[NPU]),
                "attention": 0.0,
            }
            found = found.times(_ANCHOR_PROMPT_MS / self._of_path(fitted, anchor, path).value)
        found = found.times(prompt)
        if self._engine_unknown:
            found = replace(found, low=min(found.low, _ENGINE_UNKNOWN_LOW * found.value), judged=True)
        judged = found.judged or token.judged
        return Estimate(max(found.value, token.value), max(found.low, token.low), max(found.high, token.high), judged)

    def _speed(self, processor: str) -> float:
        """As the prefill's arithmetic is scaled (benchmarks/predictors/rows.py)."""
        speed = peak(self._device.hardware, processor)
        assert speed is not None
        if self._coreml:
            return self._coreml_speed(processor, speed)
        return speed / self._calibration.constants["cpu_gflops"] if processor == CPU else speed / _GPU_GFLOPS

    def _coreml_speed(self, processor: str, speed: float) -> float:
        """Of a processor under Core ML: as its peak is to the M4 Pro's of the same kind, whose speed is its NPU's."""
        return 2 * _ANCHOR_PEAKS[NPU] * speed / _ANCHOR_PEAKS[processor] / self._calibration.constants["npu_gops"]

    def _of_path(self, fitted: Model, features: Mapping[str, float], path: str) -> Estimate:
        unit = path.partition("/")[2]
        chip = {} if self._coreml else self._chip(fitted)
        situation = {"path": path, "unit": unit, "precision": "q4_0", "kind": "named", **chip}
        if self._coreml or not self._device.hardware.soc:
            return fitted.estimate(features, situation, f"unknown chip, {path}", OTHER_MAKER)
        return fitted.estimate(features, situation, f"{self._known(fitted)}, {path}", OTHER_RUNTIME)

    def _chip(self, fitted: Model) -> Levels:
        """Levels of the chip, as far as public measurements know it."""
        found = {}
        if hexagon(self._device):
            found["form"] = "Phone"
            if self._version is not None:
                found["htp"] = str(self._version)
        if self._measured is not None:
            found["chip"] = self._measured
        return found

    def _known(self, fitted: Model) -> str:
        chip = self._chip(fitted).get("chip")
        return "known chip" if chip in fitted.effects["chip"] else "unknown chip"

    def _operator_ms(self) -> float:
        own = self._device.hardware.operator_us
        return (_OPERATOR_US if own is None else own) / 1e3

    def _basis_of_tower(self) -> str:
        hardware = self._device.hardware
        if self._tower == NPU and self._coreml:
            peak_of_it = f"at the peak of this one{self._source_of_peak()}"
            return f"Apple's figures of FastViT on two Neural Engines, {peak_of_it}; the interval is judged"
        if self._tower == NPU and self._known(self._calibration.models["encode"]) == "known chip":
            return f"Qualcomm's published latencies on the Hexagon of this chip (measured there: {hardware.soc})"
        if self._tower == NPU:
            near = "whose version here is not known" if self._version is None else f"of about version {self._version}"
            return f"Qualcomm's published latencies on other chips, with Hexagons {near}"
        which = "the GPU" if self._tower == GPU else "the CPU"
        other = " (its Neural Engine's speed is not known; it may be ten times as fast)" if self._engine_unknown else ""
        return (
            f"the share of their peaks that few towers attained on CPUs, at the peak of {which}{other}; "
            "the interval is judged"
        )

    def _source_of_peak(self) -> str:
        """What the profile says of where a Neural Engine's peak is from: the first clause, in brackets."""
        for kind in ("float16", "int8"):
            if source := self._device.sources.get(f"hardware.peaks.npu.{kind}"):
                return f" ({source.source.partition(';')[0].strip()})"
        return ""

    def _basis_of_decoder(self) -> str:
        if self._coreml:
            return (
                "one published figure, FastVLM 0.5B in float16 on an M4 Pro, at this chip's bandwidth and peak; "
                "how times grow with context is llama.cpp's on Snapdragons; the interval is judged"
            )
        fitted, unit = self._calibration.models["decode"], "GPU" if self._decoder == GPU else "CPU"
        if self._device.hardware.soc and self._known(fitted) == "known chip":
            return (
                f"llama.cpp measured on this chip's {unit} (Qualcomm's figures); ONNX Runtime's kernels are others, by "
                "which the interval is judged wider"
            )
        return (
            f"what llama.cpp attains of bandwidth and peak on the {unit}s of Snapdragons, at those of this chip; the "
            "interval is judged wider than there"
        )
