# %% [markdown]
# # From a CSV to a service with new items
#
# For a shop: a file of purchases, a model, a service over HTTP, and next day's purchases with
# items that the model has never seen. Cells run from top to bottom, in an editor that knows
# `# %%`, or all at once with `python shop-service.py`, in an empty folder. It takes about a minute
# on two cores.

# %%
import json
import threading
import time
import urllib.request
from pathlib import Path

import torch
import uvicorn

import adarec_fast as af
from adarec_fast.data import synthetic, write_csv
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.serving import ServeConfig, Service, Source, create_app
from adarec_fast.training import load_run, train
from adarec_fast.training.further import refitted
from adarec_fast.training.run_folder import locked
from adarec_fast.training.updated import update_memory

USERS = 400
EPOCHS = 8
PORT = 8000

# %% [markdown]
# ## The purchases
#
# A row is a user, an item and a time, under any names: what was read as what, and why, is told.
# `adarec-fast data inspect purchases.csv` says more.

# %%
write_csv(synthetic(num_users=USERS, num_items=120, seed=2), Path("purchases.csv"))
data = af.load("purchases.csv")
print(data)
print(data.report.columns)

# %% [markdown]
# ## A model, and is it any good?
#
# SASRec with a memory: beside its vectors it remembers which items follow which, and that memory
# is what new items will come in by. Everybody's last purchase is held out as a test.

# %%
settings = {"model": "sasrec", "hidden_size": 16, "num_layers": 1, "memory": "transitions"}
training = af.TrainConfig(epochs=EPOCHS, learning_rate=3e-3, log="none")
train(settings, training, data, "runs/purchases")
run = load_run("runs/purchases")
result = evaluate(run.model, run.split, "test")
print(f"of {result.num_users} users {result.overall['HR@20']:.0%} find their next item among 20")

# %% [markdown]
# ## For use: on everything
#
# What was held out is what a model in use needs most. The same settings, as many epochs as the
# validation found, and nothing held out:

# %%
plan = refitted("runs/purchases")
train(plan.model, plan.train, plan.data, "runs/for-use", start=plan.start)

# %% [markdown]
# ## The service
#
# In a shop this is `adarec-fast serve runs/for-use --watch 10`, a process of its own behind a
# proxy. Here it runs in a thread, so that the page has one program.

# %%
source = Source(Path("runs/for-use"), "best", torch.device("cpu"), 1, 64)
service = Service(source, ServeConfig(port=PORT, watch=0.2))
server = uvicorn.Server(uvicorn.Config(create_app(service), port=PORT, log_level="warning"))
thread = threading.Thread(target=server.run)
thread.start()


def ask(path: str, question: dict | None = None) -> dict:
    """The service's answer; waits until it is there."""
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}{path}", body, {"Content-Type": "application/json"}
    )
    for _ in range(100):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except ConnectionError:
            time.sleep(0.1)
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError):
                raise
            time.sleep(0.1)
    raise TimeoutError("the service does not answer")


def items(question: dict) -> list[str]:
    """What the service recommends."""
    return [entry["item"] for entry in ask("/recommend", question)["items"]]


user = data.users.ids[0]
print(f"{user}: {items({'user': user, 'k': 5})}")

# %% [markdown]
# ## The next day
#
# Ten customers took something that the model has never heard of, right after an item that it
# knows; one of the customers is new, too.

# %%
known = data.items.ids[0]
lines = ["user_id,item_id,timestamp"]
for place, customer in enumerate([*data.users.ids[1:10], "somebody-new"]):
    lines += [f"{customer},{known},{90000 + place}", f"{customer},the-novelty,{90010 + place}"]
Path("today.csv").write_text("\n".join(lines) + "\n")

before = ask("/health")["model"]["id"]
with locked(Path("runs/for-use")):
    added = update_memory(Path("runs/for-use"), af.load("today.csv", min_length=1))
print(f"{added.new_items} new items and {added.new_users} new users, counted in without training")

# %% [markdown]
# The service watches the folder and takes over what it finds; requests go on meanwhile.
# As commands: `adarec-fast memory update runs/for-use --data today.csv`.

# %%
for _ in range(100):
    if ask("/health")["model"]["id"] != before:
        break
    time.sleep(0.1)
print(f"who takes {known}: {items({'history': [known], 'k': 5})}")
print(f"somebody-new: {items({'user': 'somebody-new', 'k': 5})}")

# %% [markdown]
# Every night or week the model itself learns what came since
# (`adarec-fast train --from runs/for-use --data today.csv --split none --run-dir runs/next`), and
# the service is pointed at the new folder. More: `adarec-fast docs going-on` and
# `adarec-fast docs serving`.

# %%
server.should_exit = True
thread.join()
