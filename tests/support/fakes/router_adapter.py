"""An adapter of a router that is not there: a dictionary, and what a test asks of it by the environment.

Run as a program: FAULT is what it does wrong ("": nothing), PORT_MAC the MAC of its ports.
"""

import json
import os
import sys
import time


def main() -> None:
    fault, mac = os.environ.get("FAULT", ""), os.environ.get("PORT_MAC", "00:00:de:ad:be:ef")
    routes: dict[str, str | None] = {}
    print("adapter of a test", file=sys.stderr, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if fault == "dumb":
            time.sleep(60)
        if fault == "babble":
            print("no JSON", flush=True)
            continue
        if asked["ask"] == "look":
            ports = {f"p{n}": [100 + n, mac, n != 3] for n in (1, 2, 3, 4)}
            said = {"ports": ports, "forwards": fault != "no forwarding", "routes": routes}
            said["strict"] = [fault.removeprefix("strict ")] if fault.startswith("strict ") else []
            if fault.startswith("mac "):
                ports[fault.removeprefix("mac ")][1] = "02:00:00:00:00:99"
        elif fault == "refuses":
            said = {"error": "no room in the table"}
        else:
            if fault != "forgets":
                routes |= asked["put"]
                routes = {one: hop for one, hop in routes.items() if one not in asked["delete"]}
            touched = {*asked["put"], *asked["delete"]}
            said = {"routes": {one: hop for one, hop in routes.items() if one in touched}}
        print(json.dumps(said), flush=True)
        if fault == "others write":
            routes[f"10.9.9.{len(routes)}/32"] = "10.0.0.11"
        if fault == "dies" and asked["ask"] == "change":
            return


if __name__ == "__main__":
    main()
