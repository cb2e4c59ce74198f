"""What `itemwise serve` does with the flags of SGLang, sglang-jax and vLLM.

Three kinds of rules: `SameAs`, `NoEffect` and `Refused`. In their `flags`, `--flag` is a switch,
`--flag=` takes one value, `--flag=*` any number of values, and `--prefix-*` is every flag that
begins so and has no rule of its own. docs/migrating.md shows these tables.

The names come from the argument parsers of SGLang 0.5, sglang-jax and vLLM 0.33.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from itemwise.errors import brief

Check = Callable[[str], str | None]  # from a value to the reason why it is refused, or None


def _unchanged(value: str) -> str | None:
    return value


def _nothing(value: str) -> str | None:
    return None


@dataclass(frozen=True)
class SameAs:
    """Flags that set an option of Itemwise.

    Attributes:
        option: the option.
        flags: names of the flags.
        meaning: what the help of `option` does not say about them.
        convert: from a flag's value to the option's; None for the option's default. Raises
            ValueError with what is wrong about the value and what to do.
        lowest: if the option is set more than once, the lowest value holds and not the last.
    """

    option: str
    flags: str
    meaning: str = ""
    convert: Callable[[str], str | None] = _unchanged
    lowest: bool = False


@dataclass(frozen=True)
class NoEffect:
    """Flags that are accepted and change nothing.

    Attributes:
        why: why nothing is lost.
        flags: names of the flags.
        check: which values are refused all the same.
        remark: what the line at the start says about them.
    """

    why: str
    flags: str
    check: Check = _nothing
    remark: str = ""


@dataclass(frozen=True)
class Refused:
    """Flags that ask for something that Itemwise does not do.

    Attributes:
        why: the reason, and what to do instead.
        flags: names of the flags.
    """

    why: str
    flags: str


@dataclass(frozen=True)
class Only:
    """A check that refuses all but some values, for a reason."""

    allowed: Collection[str]
    why: str

    def __call__(self, value: str) -> str | None:
        """The reason, if the value is not allowed."""
        return None if value.lower() in self.allowed else self.why


def _tokens(text: str) -> str | None:
    """A number of tokens: `4096`, `4k` (4000), `4K` (4096), and -1 or `auto` for the default."""
    if text in ("-1", "auto"):
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmKM]?)", text)
    if not found:
        raise ValueError(f"{text!r} is no number of tokens; write it like 4096, 4k or auto")
    unit = {"": 1, "k": 1000, "m": 1000**2, "K": 1024, "M": 1024**2}[found[2]]
    return str(int(float(found[1]) * unit))


def _bytes(text: str) -> str | None:
    """A number of bytes: `4000000000`, `4G` (4 GiB), `4g` (4 GB)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG]?)", text)
    if not found:
        raise ValueError(f"{text!r} is no number of bytes; write it like 4000000000 or 4G")
    unit = 1024 if found[2].isupper() else 1000
    return str(int(float(found[1]) * unit ** " kmg".index(found[2].lower() or " ")))


def _dtype(text: str) -> str | None:
    near = {"half": "auto", "float16": "auto", "float": "float32"}
    return near.get(text, text)


_ATTENTION = """aiter ascend cutlass_mla cutedsl_mla dsa dsv4 dual_chunk_flash_attn fa3 fa4
    flash_attn flash_attn_mla flashattn_mla flashinfer flashinfer_mla flashmla flex_attention
    hpc_attn intel_amx intel_xpu linear nsa rocm_aiter_fa rocm_attn rocm_flash torch_native
    torch_sdpa tokenspeed_mla tree_attn triton triton_attn triton_mla trtllm_mha trtllm_mla
    wave xformers"""


def _attention(text: str) -> str | None:
    return "auto" if text.lower() in _ATTENTION.split() else text


def _quantization(text: str) -> str | None:
    if text in ("none", "int8"):
        return text
    raise ValueError(
        f"{text} is not served; give a checkpoint that is not quantised, or `--quantization int8`, "
        "which quantises it while it loads"
    )


def _log_level(text: str) -> str | None:
    return {"trace": "debug", "critical": "error", "warn": "warning"}.get(
        text.lower(), text.lower()
    )


def _device(text: str) -> str | None:
    """Why the server cannot run on a device, or None. Loads JAX."""
    from itemwise.engine.platform import default_platform

    wanted = {"cuda": "gpu", "rocm": "gpu"}.get(text.split(":")[0].lower(), text.lower())
    try:
        found = default_platform()
    except RuntimeError as error:
        return f"JAX cannot use any device ({brief(error)}); check JAX_PLATFORMS and the drivers"
    if wanted in ("auto", found):
        return None
    return (
        f"this machine has no {text} that JAX can use, only {found}; remove the flag to run on "
        f"{found}, or install JAX for {text}"
    )


def _first_devices(text: str) -> str | None:
    numbers = text.replace(",", " ").split()
    if numbers == [str(number) for number in range(len(numbers))]:
        return None
    return "the first devices are used; choose with CUDA_VISIBLE_DEVICES or TPU_VISIBLE_CHIPS"


SAME_AS: tuple[SameAs, ...] = (
    SameAs("--tokenizer-path", "--tokenizer="),
    SameAs("--tp-size", "--tensor-parallel-size= -tp="),
    SameAs(
        "--max-multi-item-seq-len",
        "--context-length= --max-seq-len= --max-model-len=",
        "For a query and one item together. If several are given, the lowest holds.",
        _tokens,
        lowest=True,
    ),
    SameAs("--mem-fraction-static", "--gpu-memory-utilization= --device-memory-utilization="),
    SameAs("--kv-cache-bytes", "--kv-cache-memory-bytes=", convert=_bytes),
    SameAs("--dtype", "--dtype=", "`half` and `float16` become `auto`.", _dtype),
    SameAs(
        "--attention-backend",
        "--attention-backend=",
        "Kernels that Itemwise does not have, like `flashinfer`, `fa3`, `triton` and "
        "`torch_native`, become `auto`.",
        _attention,
    ),
    SameAs("--quantization", "--quantization= -q=", "`int8` and `none` only.", _quantization),
    SameAs("--disable-radix-cache", "--no-enable-prefix-caching"),
    SameAs("--max-queued-requests", "--max-num-queued-reqs="),
    SameAs("--max-queued-tokens", "--max-num-queued-tokens=", convert=_tokens),
    SameAs("--root-path", "--fastapi-root-path="),
    SameAs("--drain-timeout", "--shutdown-timeout="),
    SameAs(
        "--log-level",
        "--log-level= --uvicorn-log-level=",
        "Capitals do not matter; `critical` becomes `error`.",
        _log_level,
    ),
    SameAs("--disable-access-log", "--disable-uvicorn-access-log"),
)

_REPLICAS = "one process serves one replica on one machine; start more replicas behind a proxy"
_ONE = Only(("1",), _REPLICAS)

NO_EFFECT: tuple[NoEffect, ...] = (
    NoEffect(
        "Itemwise runs no code from a model's repository.",
        "--trust-remote-code --code-revision= --model-impl= --config-format= "
        "--model-config-parser=",
    ),
    NoEffect(
        "The device that JAX finds is used; one that it does not find is refused.",
        "--device=",
        check=_device,
    ),
    NoEffect(
        "The first devices are used. Others are chosen with `CUDA_VISIBLE_DEVICES` or "
        "`TPU_VISIBLE_CHIPS`, and refused here.",
        "--device-indexes=* --device-ids=* --base-gpu-id=",
        check=_first_devices,
    ),
    NoEffect(
        "Queries are always computed page by page, beside the items of other requests.",
        "--chunked-prefill-size= --enable-chunked-prefill --enable-mixed-chunk "
        "--enable-dynamic-chunking --disable-chunked-prefix-cache --disable-chunked-mm-input "
        "--long-prefill-token-threshold= --long-prefill-token-threshold-adaptive "
        "--max-num-partial-prefills= --max-long-partial-prefills=",
    ),
    NoEffect(
        "The engine plans pages and steps by itself, and bounds the queue in tokens "
        "(`--max-queued-tokens`).",
        "--page-size= --block-size= --max-running-requests= --max-total-tokens= "
        "--max-prefill-tokens= --max-num-seqs= --max-num-active-seqs= --max-num-batched-tokens= "
        "--max-num-scheduled-tokens= --num-gpu-blocks-override= --swap-space= --watermark= "
        "--prefill-max-requests= --pp-max-micro-batch-size= "
        "--pp-async-batch-depth= --swa-full-tokens-ratio= --swa-prefix-tails= "
        "--disable-hybrid-swa-memory --disable-hybrid-kv-cache-manager --c128-page-size= "
        "--prefill-only-disable-kv-cache --scheduler-reserve-full-isl "
        "--enable-memory-saver --enable-weights-cpu-backup --enable-sleep-mode --sleep-mode-*=* "
        "--enable-cumem-allocator --enable-nccl-comm-suspend --sleep-preserve-parameter-names=* "
        "--enable-unified-memory --enable-page-major-kv-layout --enable-kv-cache-sharding "
        "--num-reserved-decode-tokens=",
    ),
    NoEffect(
        "The scheduler goes by `priority` and by remaining work; see "
        "[operations](operations.md#who-goes-first).",
        "--schedule-*=* --scheduling-policy= --scheduler-*=* --enable-priority-scheduling "
        "--disable-priority-preemption --default-priority-value= --retraction-policy= "
        "--abort-on-priority-when-disabled --priority-scheduling-preemption-threshold= "
        "--disable-overlap-schedule --async-scheduling --num-scheduler-steps= "
        "--num-continuous-decode-steps= --multi-step-stream-outputs --preemption-mode= "
        "--prefill-delayer-*=* --enable-prefill-delayer --prefill-decode-*=* "
        "--prefill-schedule-interval= --min-free-slots-delay= --load-balance-method=",
    ),
    NoEffect(
        "Programs have few shapes and are compiled at the start.",
        "--precompile-token-paddings=* --precompile-bs-paddings=* --precompile-*=* "
        "--disable-precompile --skip-server-warmup --warmups= --enforce-eager --cuda-graph-*=* "
        "--disable-cuda-graph --disable-*-cuda-graph --disable-cuda-graph-padding "
        "--enable-profile-cuda-graph --enable-cudagraph-gc --cudagraph-*=* "
        "--max-cudagraph-capture-size= --debug-cuda-graph --enable-torch-compile "
        "--enable-torch-compile-debug-mode --torch-compile-max-bs= --max-seq-len-to-capture= "
        "--compilation-config= -cc= -O= --optimization-level= --performance-mode= "
        "--use-tqdm-on-load",
    ),
    NoEffect(
        "Kernels and collective operations are chosen for the device.",
        "--decode-attention-backend= --prefill-attention-backend= --attention-config= -ac= "
        "--sampling-backend= --moe-*=* --enable-fused-*=* --linear-*=* --kernel-config= "
        "--mamba-*=* --max-mamba-cache-size= --gdn-*=* --kda-*=* --dsa-*=* --dsv4-*=* "
        "--triton-attention-*=* --flashinfer-*=* --enable-flashinfer-*=* "
        "--disable-flashinfer-*=* --enforce-disable-flashinfer-allreduce-fusion "
        "--enable-lean-attention --enable-nvidia-megakernel --enable-amd-monokernel "
        "--monokernel --monokernel-backend= --fp8-gemm-*=* --fp4-gemm-*=* --bf16-gemm-backend= "
        "--disable-custom-all-reduce --enable-mscclpp --enable-nccl-nvls --enable-symm-mem "
        "--enable-torch-symm-mem --enable-p2p-check --pre-warm-nccl --nccl-port= "
        "--enable-quant-communications --boundary-reduction= --disable-cascade-attn "
        "--disable-jax-allreduce-metadata --disable-topk-kernel --use-sort-for-toppk-minp "
        "--enable-tf32-matmul --enable-fp32-lm-head --use-fp64-gumbel --ir-op-priority= "
        "--*-allreduce-fusion=* --disable-shared-experts-fusion --recurrent-*=* "
        "--max-recurrent-state-size= --numa-*=* --enable-two-batch-overlap "
        "--enable-single-batch-overlap --tbo-*=* --enable-dbo --dbo-*=* --ubatch-size= "
        "--enable-sequence-parallel --enable-layernorm-sp --enable-prefill-cp --cp-*=* --dcp-*=* "
        "--enable-cp-*=* --enable-tp-*=* --enable-dp-*=* --enable-attn-tp-*=* "
        "--enable-dense-mlp-attn-tp --enable-shared-experts-attn-tp --disable-attn-tp-gather "
        "--shared-experts-tp-size= --enforce-shared-experts-fusion --enable-dsa-*=* "
        "--enable-linear-*=* --enable-*-mamba-*=* --int8-mamba-*=* --disable-aiter-*=* "
        "--use-replayssm --replayssm-*=* --enable-shm-tensor-arena --enable-flash-*=*",
    ),
    NoEffect(
        "Scores have the same bits in any batch composition, and nothing is drawn at random.",
        "--random-seed= --seed= --enable-deterministic-sampling --enable-deterministic-inference "
        "--rl-on-policy-target= --enable-nan-detection",
    ),
    NoEffect(
        "Nothing is generated: no sampling, streaming, grammars, reasoning or tools.",
        "--grammar-backend= --guided-decoding-backend= --structured-outputs-config= "
        "--constrained-json-*=* --disable-outlines-disk-cache --stream-*=* --batch-notify-size= "
        "--incremental-streaming-output --preferred-sampling-params= --sampling-defaults= "
        "--generation-config= --override-generation-config= --max-logprobs= --logprobs-mode= "
        "--logits-processors=* --logits-processor-pattern= --enable-custom-logit-processor "
        "--return-tokens-as-token-ids --reasoning-*=* --enable-reasoning --tool-*=* "
        "--enable-auto-tool-choice --exclude-tools-when-tool-choice-none "
        "--enable-strict-thinking --strip-thinking-cache --response-role= "
        "--chat-template-content-format= --default-chat-template-kwargs= "
        "--trust-request-chat-template --completion-template= --enable-force-include-usage "
        "--disable-tokenizer-batch-decode --detokenizer-worker-num= --sse-keep-alive-interval= "
        "--enable-streaming-session --cohere-is-reasoning-model --anthropic-*=*",
    ),
    NoEffect(
        "A repeated query is found in the cache by default (`--disable-radix-cache` turns it off).",
        "--enable-prefix-caching --prefix-caching-hash-algo= --radix-*=* --enable-scoring-cache "
        "--enable-unified-radix-tree --enable-session-radix-cache --hicache-*=* "
        "--enable-hierarchical-cache --enable-hicache --enable-lmcache --lmcache-config-file= "
        "--kv-sharing-fast-prefill --enable-cache-report --enable-prompt-tokens-details "
        "--prefix-cache-retention-interval= --prefix-match-unit= --kv-offloading-*=* "
        "--unified-cache-*=* --enable-unified-cache-*=* --enable-flexkv --flexkv-config-file=",
    ),
    NoEffect(
        "This is how items are always scored.",
        "--multi-item-enable-prefill-extend --multi-item-extend-batch-size= "
        "--multi-item-prefill-extend-cache-timeout= --multi-item-segment-fallback-threshold= "
        "--multi-item-enable-score-from-cache-* --multi-item-score-from-cache-*=* "
        "--multi-item-score-label-only-logprob --multi-item-score-fastpath-log-metrics "
        "--multi-item-score-*=*",
    ),
    NoEffect(
        "Items are told apart without a delimiter; `--multi-item-scoring-delimiter` adds one.",
        "--enable-mis",
        remark="no delimiter is put between items",
    ),
    NoEffect(
        "Text is tokenised on threads; requests may hold token ids instead.",
        "--skip-tokenizer-init --tokenizer-worker-num= --tokenizer-pool-*=* --tokenizer-backend= "
        "--renderer-num-workers= --enable-tokenizer-batch-encode --enable-dynamic-batch-tokenizer "
        "--dynamic-batch-tokenizer-*=* --enable-tokenizer-info-endpoint --tokens-only",
    ),
    NoEffect(
        "The tokenizer is always the fast one of `tokenizer.json`.",
        "--tokenizer-mode=",
        check=Only(
            ("auto", "fast", "hf", "slow"),
            "only tokenizers with a `tokenizer.json` are served; convert it",
        ),
    ),
    NoEffect(
        "Weights are safetensors.",
        "--load-format=",
        check=Only(
            ("auto", "safetensors", "hf", "fastsafetensors", "runai_streamer"),
            "weights are safetensors only; convert them, or for random weights run "
            "`itemwise checkpoint random`",
        ),
    ),
    NoEffect(
        "Weights are read in the order and at the speed of the disk.",
        "--model-loader-extra-config= --safetensors-*=* --weight-loader-*=* --ignore-patterns=* "
        "--max-parallel-loading-workers= --pt-load-map-location= --weight-version= "
        "--startup-weight-load-mode=",
    ),
    NoEffect(
        "Cached keys and values have the type of the activations.",
        "--kv-cache-dtype=",
        check=Only(
            ("auto", "bfloat16", "bf16", "float16", "fp16", "half"),
            "keys and values are not quantised; remove the flag, and give the cache more memory "
            "with `--mem-fraction-static`",
        ),
    ),
    NoEffect(
        "An empty override changes nothing.",
        "--json-model-override-args= --hf-overrides= --model-class-overrides= --additional-config=",
        check=Only(
            ("{}", "", "none"),
            "the model is served as its `config.json` says; change that file in a copy of the "
            "checkpoint",
        ),
    ),
    NoEffect(
        "Itemwise only scores: label probabilities of a causal language model.",
        "--runner= --convert= --task=",
        check=Only(
            ("auto", "generate", "none", "pooling", "score", "classify"),
            "embedding and reward models are not served",
        ),
    ),
    NoEffect(
        "One process on one machine; 1 is all there is.",
        "--dp-size= --data-parallel-size= --dp= -dp= --pp-size= --pipeline-parallel-size= "
        "--pp= -pp= --nnodes= -n= --api-server-count= -asc= --data-parallel-size-local= -dpl= "
        "--dcp-size= --decode-context-parallel-size= -dcp= --attn-dp-size= "
        "--attention-data-parallel-size= --attn-cp-size= --attention-context-parallel-size= "
        "--moe-dp-size= --moe-data-parallel-size= --prefill-context-parallel-size= -pcp= "
        "--ep-size= --expert-parallel-size= --ep=",
        check=_ONE,
    ),
    NoEffect(
        "There are no other nodes to talk to.",
        "--node-rank= -r=",
        check=Only(("0",), _REPLICAS),
    ),
    NoEffect(
        "There are no other nodes to talk to.",
        "--dist-init-addr= --nccl-init-addr= --dist-timeout= --distributed-*=* --master-addr= "
        "--master-port= --cpu-distributed-timeout-seconds= --dist-*=* --worker-cls= "
        "--worker-extension-cls= --enable-single-process --use-ray --ray-workers-use-nsight "
        "--all2all-backend= --dp-schedule-policy= --dp-sync-interval= "
        "--disable-nccl-for-dp-synchronization",
    ),
    NoEffect(
        "`/metrics` is always there, requests are logged without their texts, and a stuck device "
        "ends the process.",
        "--enable-metrics --enable-metrics-for-all-schedulers --enable-mfu-metrics "
        "--bucket-*=* --prompt-tokens-buckets=* --generation-tokens-buckets=* "
        "--tokenizer-metrics-*=* --extra-metric-labels= --collect-tokens-histogram "
        "--log-level-http= --log-requests --log-requests-*=* --enable-log-requests "
        "--disable-log-requests --disable-log-stats --enable-log-outputs --enable-log-deltas "
        "--max-log-len= --log-error-stack --uvicorn-access-log-exclude-prefixes=* "
        "--disable-access-log-for-endpoints= --decode-log-interval= --show-time-cost "
        "--show-hidden-metrics-for-version= --enable-request-time-stats-logging "
        "--enable-request-id-headers --enable-server-load-tracking --enable-per-request-metrics "
        "--collect-detailed-traces=* --enable-trace --trace-*=* --otlp-service-name= "
        "--enable-layerwise-nvtx-*=* --kv-cache-metrics --kv-cache-metrics-sample= "
        "--aggregate-engine-logging --enable-logging-iteration-details --custom-histogram-buckets= "
        "--watchdog-timeout= --soft-watchdog-timeout= --watchdog-config= --sleep-on-idle "
        "--gc-*=* --crash-dump-folder= --kv-events-config= --load-publish-endpoint= "
        "--enable-precision-tracer --fail-on-environ-validation --jit-monitor-*=* "
        "--load-snapshot-publish-interval= --enable-forward-pass-metrics --profiler-config= "
        "--forward-pass-metrics-*=* --export-metrics-to-file --export-metrics-to-file-dir= "
        "--enable-expert-balance-debug --enable-expert-distribution-recorder "
        "--kv-canary=* --kv-canary-*=* --debug-tensor-dump-*=* --msprobe-dump-config= "
        "--enable-fault-tolerance --fault-tolerance-config=",
    ),
    NoEffect("The page at `/docs` loads nothing from other hosts.", "--enable-offline-docs"),
    NoEffect(
        "No such models, files or protocols are in use.",
        "--limit-mm-per-prompt= --mm-*=* --disable-mm-preprocessor-cache "
        "--disable-fast-image-processor --allowed-local-media-path= --allowed-media-domains=* "
        "--media-io-kwargs= --media-url-*=* --interleave-mm-strings --language-model-only "
        "--language-only --skip-mm-profiling --file-storage-path= --enable-response-store "
        "--h11-max-*=* --enable-http2 --http2-*=* --enable-http-worker-reuseport --asr-*=* "
        "--limit-mm-data-per-request= --image-processor-backend= --video-pruning-*=* "
        "--enable-broadcast-mm-inputs-process --enable-prefix-mm-cache --enable-mm-*=* "
        "--trust-mm-content-hashes --trust-request-mm-kwargs --expert-*=* --enable-eplb --eplb-*=* "
        "--init-expert-location= --ep-num-redundant-experts= --ep-dispatch-algorithm= "
        "--deepep-*=* --enable-expert-parallel -ep --enable-dp-attention --enable-dp-lm-head "
        "--disaggregation-bootstrap-port= --disaggregation-transfer-backend= "
        "--disaggregation-ib-device=",
    ),
    NoEffect(
        "Weights and cache are where the engine needs them.",
        "--cpu-offload-gb= --kt-num-gpu-experts= --offload-group-size=",
        check=Only(
            ("0", "0.0", "-1"),
            "weights are not offloaded; use `--quantization int8`, or `--tp-size` on more devices",
        ),
    ),
    NoEffect(
        "The server always computes whole scores itself.",
        "--disaggregation-mode=",
        check=Only(("null",), "prefill and decode are not served apart; remove the flag"),
    ),
)

REFUSED: tuple[Refused, ...] = (
    Refused(
        "LoRA adapters are not served; merge the adapter into the model, then serve the result",
        "--enable-lora --enable-lora-*=* --lora-*=* --max-loras= --max-loras-per-batch= "
        "--max-lora-*=* --max-loaded-loras= --max-cpu-loras= --enable-static-lora "
        "--fully-sharded-loras --qlora-adapter-name-or-path= --default-mm-loras=* "
        "--uno-lora-path= --long-lora-scaling-factors= --experts-shared-outer-loras "
        "--specialize-active-lora --enable-*-lora --enable-*-loras --enable-*-lora-format",
    ),
    Refused(
        "there is nothing to speculate on: nothing is generated; remove the flag",
        "--speculative-*=* --spec-*=* -sc=* --num-speculative-tokens= --ngram-*=* "
        "--decoupled-spec-*=* --enable-multi-layer-eagle --disable-logprobs-during-spec-decoding",
    ),
    Refused(
        "embedding models are not served; Itemwise scores with causal language models",
        "--is-embedding --pooler-config= --override-pooler-config=",
    ),
    Refused(
        "models of images or sound are not served; give a text model",
        "--multimodal --enable-multimodal --enable-mm-embeds --mm-encoder-only --encoder-*=* "
        "--enable-prompt-embeds",
    ),
    Refused(
        "chat templates are not used for scoring; use `--prompt-template` with a file that puts "
        "query and item into the model's form",
        "--chat-template= --hf-chat-template-name=",
    ),
    Refused(
        _REPLICAS,
        "--data-parallel-*=* -dpn= -dpr= -dpa= -dpp= -dpb= -dph -dpe -dpm --headless "
        "--dwdp-size= --enable-elastic-ep --elastic-ep-*=*",
    ),
    Refused(
        "prefill and decode are not served apart; remove the flag",
        "--disaggregation-*=* --pd-*=* --enable-pdmux --pdmux-config-path= "
        "--enable-pd-role-switch --kv-transfer-config= --ec-transfer-config=",
    ),
    Refused(
        "the model is served as its `config.json` says; change that file in a copy of the "
        "checkpoint",
        "--rope-scaling= --rope-theta= --hf-config-path= --disable-sliding-window "
        "--model-layer-nums= --dtype-config=",
    ),
    Refused(
        "quantised checkpoints are not served; give one that is not quantised, or use "
        "`--quantization int8`",
        "--quantization-param-path= --quantization-config-path= --quantization-config= "
        "--modelopt-*=* --quantize-and-serve --calculate-kv-scales --rl-quant-profile= "
        "--allow-deprecated-quantization",
    ),
    Refused(
        "weights stay in the device's memory; use `--quantization int8`, or `--tp-size` on more "
        "devices",
        "--offload-*=* --cpu-offload-params= --ple-offload-*=* --enable-paged-experts "
        "--paged-experts-num-resident= --kt-*=*",
    ),
    Refused(
        "diffusion language models are not served; give a causal language model",
        "--dllm-*=* --diffusion-config= -dc=",
    ),
    Refused(
        "pages of the origins in `--allowed-origins` may send every method and header, and no "
        "credentials but the key",
        "--allow-credentials --allowed-methods=* --allowed-headers=*",
    ),
    Refused(
        "the server speaks plain HTTP; put a proxy with TLS in front of it",
        "--ssl-*=* --enable-ssl-refresh",
    ),
    Refused(
        "the server speaks HTTP on `--host` and `--port` only",
        "--uds= --grpc --grpc-*=* --grpc-mode --smg-*=* --sidecar= --sidecar-args=",
    ),
    Refused(
        "the server runs no code of others; put it into a proxy in front of the server",
        "--middleware=* --io-processor-plugin= --reasoning-parser-plugin= --tool-parser-plugin= "
        "--custom-weight-loader=* --forward-hooks=",
    ),
    Refused(
        "all requests have the same rights; there is one kind of key, `--api-key`",
        "--admin-api-key=",
    ),
    Refused(
        "the tokenizer comes from the model's revision; give a folder with `--tokenizer-path`",
        "--tokenizer-revision=",
    ),
    Refused(
        "the token is a secret; set the environment variable `HF_TOKEN`",
        "--hf-token=*",
    ),
    Refused(
        "`/docs` cannot be turned off; block it in a proxy in front of the server",
        "--disable-fastapi-docs",
    ),
    Refused(
        "settings come from flags and `ITEMWISE_` environment variables; write out what the file "
        "says",
        "--config= --log-config-file= --logging-config=",
    ),
    Refused(
        "answers hold scores only; remove the flag",
        "--enable-return-*=* --return-*=* --enable-trace-replay --aux-output-config=",
    ),
    Refused(
        "weights do not change while the server runs; remove the flag",
        "--remote-instance-weight-loader-*=* --checkpoint-engine-*=* --weight-transfer-config= "
        "--weight-cache-*=* --model-checksum=* --delete-ckpt-after-loading "
        "--decrypted-config-file=",
    ),
)

Rule = SameAs | NoEffect | Refused
RULES: tuple[Rule, ...] = (*SAME_AS, *NO_EFFECT, *REFUSED)
