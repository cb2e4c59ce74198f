"""A Ray cluster of this machine with an application, in a process of its own.

    python cluster.py FOLDER PORT    serves until standard input ends

Each line of standard input is JSON with the arguments of an application, which replaces the one
before; prints a line once it serves.
"""

from __future__ import annotations

import json
import sys
import warnings


def main() -> None:
    folder, port = sys.argv[1:]
    warnings.simplefilter("ignore")
    import ray
    from ray import serve

    from itemwise.ray.serve import app

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
    )
    try:
        serve.start(
            proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": int(port)}
        )
        for line in sys.stdin:
            serve.run(app(json.loads(line)))
            sys.stdout.write("serving\n")
            sys.stdout.flush()
        serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
