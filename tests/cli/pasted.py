"""Flags and command lines that people bring from other servers, and what must become of them."""

from __future__ import annotations

from typing import Any, NamedTuple

# Flags of sglang-jax, SGLang and vLLM that set an option of Itemwise, with that option.
SAME = """
--model-path X                          --model-path=X
--model X                               --model-path=X
--tokenizer-path X                      --tokenizer-path=X
--context-length 4096                   --max-multi-item-seq-len=4096
--max-seq-len 4096                      --max-multi-item-seq-len=4096
--max-model-len 512                     --max-multi-item-seq-len=512
--revision main                         --revision=main
--download-dir /tmp                     --download-dir=/tmp
--host 0.0.0.0                          --host=0.0.0.0
--port 1                                --port=1
--api-key K                             --api-key=K
--served-model-name N                   --served-model-name=N
--log-level info                        --log-level=info
--uvicorn-log-level info                --log-level=info
--dtype auto                            --dtype=auto
--dtype bfloat16                        --dtype=bfloat16
--dtype float32                         --dtype=float32
--dtype float                           --dtype=float32
--dtype float16                         --dtype=auto
--dtype half                            --dtype=auto
--quantization int8                     --quantization=int8
--mem-fraction-static 0.7               --mem-fraction-static=0.7
--gpu-memory-utilization 0.9            --mem-fraction-static=0.9
--max-queued-requests 64                --max-queued-requests=64
--tensor-parallel-size 1                --tp-size=1
--tp-size 1                             --tp-size=1
--tp 1                                  --tp-size=1
--fastapi-root-path /x                  --root-path=/x
--disable-radix-cache                   --disable-radix-cache
--no-enable-prefix-caching              --disable-radix-cache
--attention-backend fa                  --attention-backend=fa
--attention-backend native              --attention-backend=native
--attention-backend flashinfer          --attention-backend=auto
--attention-backend triton              --attention-backend=auto
--attention-backend fa3                 --attention-backend=auto
--attention-backend torch_native        --attention-backend=auto
--attention-backend trtllm_mha          --attention-backend=auto
--attention-backend FLASH_ATTN          --attention-backend=auto
--multi-item-scoring-delimiter 151643   --multi-item-scoring-delimiter=151643
--multi-item-scoring-chunk-size 2       --multi-item-scoring-chunk-size=2
--max-multi-item-count 512              --max-multi-item-count=512
--max-multi-item-seq-len 32768          --max-multi-item-seq-len=32768
--allow-auto-truncate                   --allow-auto-truncate
--multi-item-mask-impl dense            --multi-item-mask-impl=dense
--multi-item-mask-impl segment          --multi-item-mask-impl=segment
"""

# Flags that change nothing.
NO_EFFECT = """
--tokenizer-mode auto
--skip-tokenizer-init
--load-format auto
--model-loader-extra-config {}
--trust-remote-code
--model-impl auto
--skip-server-warmup
--warmups x
--kv-cache-dtype auto
--max-running-requests 32
--max-total-tokens 65536
--max-prefill-tokens 32768
--chunked-prefill-size -1
--chunked-prefill-size 4096
--enable-mixed-chunk
--schedule-policy fcfs
--schedule-policy lpm
--schedule-conservativeness 1.0
--page-size 64
--swa-full-tokens-ratio 0.8
--disable-hybrid-swa-memory
--device cpu
--device auto
--device-indexes 0
--base-gpu-id 0
--stream-interval 1
--stream-output
--random-seed 3
--constrained-json-whitespace-pattern x
--watchdog-timeout 300
--dist-timeout 60
--sleep-on-idle
--data-parallel-size 1
--dp-size 1
--dp 1
--ep-size 1
--log-level-http warning
--log-requests
--log-requests-level 1
--crash-dump-folder x
--show-time-cost
--enable-metrics
--decode-log-interval 40
--enable-request-time-stats-logging
--kv-events-config x
--file-storage-path x
--enable-cache-report
--reasoning-parser qwen3
--tool-call-parser qwen
--dist-init-addr 127.0.0.1:1
--nnodes 1
--node-rank 0
--json-model-override-args {}
--preferred-sampling-params {}
--disable-overlap-schedule
--enable-tokenizer-batch-encode
--grammar-backend none
--grammar-backend llguidance
--precompile-token-paddings 1024 4096 16384
--precompile-bs-paddings 1 4 8 16 32
--disable-precompile
--enable-deterministic-sampling
--enable-single-process
--enable-nan-detection
--use-sort-for-toppk-minp
--moe-backend epmoe
--enable-scoring-cache
--multi-item-segment-fallback-threshold 0
--multi-item-enable-prefill-extend
--multi-item-extend-batch-size 12
--multi-item-prefill-extend-cache-timeout 60
--multi-item-enable-score-from-cache-v2
--multi-item-score-from-cache-v2-items-per-step 64
--multi-item-score-label-only-logprob
--multi-item-score-fastpath-log-metrics
--enable-mis
--disable-cuda-graph
--cuda-graph-max-bs 4
--enable-torch-compile
--enable-p2p-check
--sampling-backend pytorch
--tokenizer-worker-num 2
--weight-version default
--disable-outlines-disk-cache
--enable-priority-scheduling
--enforce-eager
--max-num-seqs 32
--max-num-batched-tokens 8192
--runner pooling
--enable-prefix-caching
--disable-log-requests
"""

# Flags that ask for what Itemwise does not do, with words of the reason.
REFUSED = """
--is-embedding                          embedding models are not served
--quantization fp8                      give a checkpoint that is not quantised
--quantization w8a8_int8                give a checkpoint that is not quantised
--quantization-param-path x             quantised checkpoints are not served
--quantization-config-path x            quantised checkpoints are not served
--kv-cache-dtype fp8_e5m2               keys and values are not quantised
--speculative-algorithm EAGLE           nothing is generated
--multimodal                            give a text model
--enable-lora                           merge the adapter into the model
--lora-paths a=b c=d                    merge the adapter into the model
--chat-template qwen3_reranker.jinja    use `--prompt-template`
--dp-size 2                             start more replicas
--nnodes 2                              start more replicas
--node-rank 1                           start more replicas
--device tpu                            only cpu
--device-indexes 1                      CUDA_VISIBLE_DEVICES
--json-model-override-args {"a":1}      change that file
--load-format dummy                     itemwise checkpoint random
--tokenizer-mode mistral                tokenizer.json
--runner draft                          embedding and reward models
--ssl-keyfile k                         proxy with TLS
--config cfg.yaml                       write out
--max-model-len many                    no number of tokens
--hf-token                              `HF_TOKEN`
"""


class Line(NamedTuple):
    """A command line.

    Attributes:
        name: where it comes from.
        text: what follows the program; a checkpoint of Qwen3-0.6B stands for the models.
        engine: the settings of the engine that differ from the defaults.
        needs: the device that it names, if it names one.
        problems: flags that the one message must name; then nothing starts.
    """

    name: str
    text: str
    engine: dict[str, Any]
    needs: str | None = None
    problems: tuple[str, ...] = ()


_BF16_FA: dict[str, Any] = {"dtype": "bfloat16", "attention_backend": "fa"}
_DELIMITER: dict[str, Any] = {"multi_item_scoring_delimiter": 151643, "disable_radix_cache": True}
_FORK = """--model-path Qwen/Qwen3-0.6B --trust-remote-code --port 30000 --device tpu
    --dtype bfloat16 --attention-backend fa --mem-fraction-static 0.7 --page-size 64
    --skip-server-warmup"""
_FORK_LIMITS: dict[str, Any] = {
    "mem_fraction_static": 0.7,
    "multi_item_scoring_delimiter": 151643,
    "max_multi_item_count": 512,
    "max_multi_item_seq_len": 32768,
    "multi_item_mask_impl": "dense",
}

LINES = (
    Line(
        "multi-item",
        """--model-path Qwen/Qwen3-0.6B --host 0.0.0.0 --port 30000 --trust-remote-code
        --dtype bfloat16 --tp-size 1 --multi-item-scoring-delimiter 151643
        --multi-item-scoring-chunk-size 2 --disable-radix-cache --chunked-prefill-size -1
        --attention-backend fa""",
        {**_BF16_FA, **_DELIMITER, "multi_item_scoring_chunk_size": 2},
    ),
    Line(
        "serial",
        """--model-path Qwen/Qwen3-0.6B --host 0.0.0.0 --port 30000 --trust-remote-code
        --dtype bfloat16 --tp-size 1 --attention-backend fa""",
        _BF16_FA,
    ),
    Line(
        "jax beside pytorch",
        """--model-path Qwen/Qwen3-0.6B --host 0.0.0.0 --port 30000 --trust-remote-code
        --dtype bfloat16 --tp-size 1 --multi-item-scoring-delimiter 151643
        --multi-item-scoring-chunk-size 500 --multi-item-mask-impl dense
        --multi-item-segment-fallback-threshold 0 --disable-radix-cache --chunked-prefill-size -1
        --attention-backend fa""",
        {
            **_BF16_FA,
            **_DELIMITER,
            "multi_item_scoring_chunk_size": 500,
            "multi_item_mask_impl": "dense",
        },
    ),
    Line(
        "pytorch beside jax",
        """--model-path Qwen/Qwen3-0.6B --host 0.0.0.0 --port 30000 --trust-remote-code --tp-size 1
        --multi-item-scoring-delimiter 151643 --disable-radix-cache --chunked-prefill-size -1""",
        _DELIMITER,
    ),
    Line(
        "fork, single item",
        f"""{_FORK} --max-running-requests 32 --chunked-prefill-size 4096
        --precompile-token-paddings 1024 4096 --precompile-bs-paddings 1 4 8 16 32""",
        {**_BF16_FA, "mem_fraction_static": 0.7},
        needs="tpu",
    ),
    Line(
        "fork, packed",
        f"""{_FORK} --max-running-requests 32 --chunked-prefill-size -1 --disable-radix-cache
        --max-prefill-tokens 32768 --precompile-token-paddings 1024 4096 16384
        --precompile-bs-paddings 1 4 8 16 32 --multi-item-scoring-delimiter 151643
        --multi-item-scoring-chunk-size 32 --max-multi-item-count 512
        --max-multi-item-seq-len 32768 --multi-item-mask-impl dense
        --multi-item-segment-fallback-threshold 0""",
        {
            **_BF16_FA,
            **_FORK_LIMITS,
            "disable_radix_cache": True,
            "multi_item_scoring_chunk_size": 32,
        },
        needs="tpu",
    ),
    Line(
        "fork, prefill and extend",
        f"""{_FORK} --max-running-requests 12 --chunked-prefill-size -1 --max-prefill-tokens 32768
        --precompile-token-paddings 1024 4096 16384
        --precompile-bs-paddings 1 2 3 4 5 6 7 8 9 10 11 12 --multi-item-scoring-delimiter 151643
        --multi-item-scoring-chunk-size 500 --max-multi-item-count 512
        --max-multi-item-seq-len 32768 --multi-item-mask-impl dense
        --multi-item-segment-fallback-threshold 0 --multi-item-enable-prefill-extend
        --multi-item-extend-batch-size 12 --multi-item-prefill-extend-cache-timeout 60
        --enable-scoring-cache""",
        {**_BF16_FA, **_FORK_LIMITS, "multi_item_scoring_chunk_size": 500},
        needs="tpu",
    ),
    Line(
        "fork, dense matrix",
        """--model-path Qwen/Qwen3-0.6B --port 30000 --multi-item-mask-impl dense
        --multi-item-segment-fallback-threshold 0 --disable-radix-cache""",
        {"multi_item_mask_impl": "dense", "disable_radix_cache": True},
    ),
    Line(
        "fork, profiling",
        """--model-path Qwen/Qwen3-0.6B --host 0.0.0.0 --port 30000 --trust-remote-code
        --dtype bfloat16 --tp-size 1""",
        {"dtype": "bfloat16"},
    ),
    Line(
        "fork, client of openai",
        "--model-path Qwen/Qwen3-0.6B --mem-fraction-static 0.7 --host 0.0.0.0 --port 30000",
        {"mem_fraction_static": 0.7},
    ),
    Line(
        "SGLang, multi-item scoring",
        """--model-path Qwen/Qwen3-0.6B --host 127.0.0.1 --port 30000 --disable-radix-cache
        --chunked-prefill-size -1 --enable-mis --attention-backend flashinfer""",
        {"disable_radix_cache": True},
    ),
    Line(
        "SGLang, Qwen3-Reranker",
        """--model-path Qwen/Qwen3-0.6B --trust-remote-code --disable-radix-cache --host 0.0.0.0
        --port 30000 --chat-template examples/chat_template/qwen3_reranker.jinja""",
        {},
        problems=("--chat-template",),
    ),
    Line(
        "SGLang, bge",
        """--model-path Qwen/Qwen3-0.6B --host 0.0.0.0 --disable-radix-cache
        --chunked-prefill-size -1 --attention-backend triton --is-embedding --port 30000""",
        {},
        problems=("--is-embedding",),
    ),
    Line(
        "packed",
        """--model-path Qwen/Qwen3-0.6B --trust-remote-code --port 30000 --dtype bfloat16
        --attention-backend fa --mem-fraction-static 0.7 --chunked-prefill-size -1
        --disable-radix-cache --multi-item-scoring-delimiter 151643
        --multi-item-scoring-chunk-size 32 --max-multi-item-count 512
        --max-multi-item-seq-len 32768 --multi-item-mask-impl dense""",
        {
            **_BF16_FA,
            **_FORK_LIMITS,
            "disable_radix_cache": True,
            "multi_item_scoring_chunk_size": 32,
        },
    ),
    Line(
        "sglang-jax, cookbook",
        """--model-path Qwen/Qwen3-0.6B --trust-remote-code --tp-size 1 --device tpu
        --dtype bfloat16 --mem-fraction-static 0.8 --chunked-prefill-size 2048 --page-size 128
        --max-running-requests 256 --download-dir /tmp --skip-server-warmup --host 0.0.0.0
        --port 30000""",
        {"dtype": "bfloat16", "mem_fraction_static": 0.8},
        needs="tpu",
    ),
    Line(
        "vLLM",
        """Qwen/Qwen3-0.6B --port 30000 --max-model-len 4k --enforce-eager --max_num_seqs=32
        --gpu-memory-utilization 0.5 --no-enable-prefix-caching -O3
        --compilation-config.level 3 --tensor-parallel-size 1 --no-trust-remote-code""",
        {
            "max_multi_item_seq_len": 4000,
            "mem_fraction_static": 0.5,
            "disable_radix_cache": True,
        },
    ),
)
