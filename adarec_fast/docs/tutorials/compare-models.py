# %% [markdown]
# # Two models over five seeds
#
# For a researcher: which of two models ranks better on your data, and would it still do so for
# other users, or after another training? Cells run from top to bottom, in an editor that knows
# `# %%`, or all at once with `python compare-models.py`. It takes about two minutes on two cores.

# %%
from pathlib import Path

from adarec_fast.data import synthetic, write_csv
from adarec_fast.experiments import run_sweep
from adarec_fast.experiments.arms import Arms
from adarec_fast.experiments.comparison import collect
from adarec_fast.training.values import place

USERS = 400
EPOCHS = 8
SEEDS = range(5)

# %% [markdown]
# ## Data
#
# Any file of interactions will do, see `adarec-fast docs your-data`. This one is made up: users
# wander between themes, which is what a model can learn.

# %%
events = Path("events.csv")
write_csv(synthetic(num_users=USERS, num_items=120, seed=1), events)

# %% [markdown]
# ## Arms
#
# An arm is a model with its settings. The first one is the baseline: here SASRec, which is
# ADARec's own backbone, so that the difference is what ADARec adds. What both have stands apart,
# and neither may set a seed or choose its users: those are the comparison's.

# %%
arms = Arms.create(
    {
        "backbone": {"model": "sasrec"},
        "adarec": {"model": "adarec", "max_depth": 2},
    },
    shared=place({"hidden_size": 16, "num_layers": 1, "dropout": 0.2, "learning_rate": 3e-3,
                  "epochs": EPOCHS, "patience": EPOCHS, "device": "cpu", "log": "none"}),
)  # fmt: skip
print(arms.arms)

# %% [markdown]
# A model with more parameters may win for that alone. Where it matters, give the baseline as many
# (a third layer: `{"model": "sasrec", "num_layers": 3}`), and as many epochs and trials.
#
# ## Runs
#
# Ten runs, each a folder: whatever is interrupted goes on where it stopped, two processes that
# are started on the same folder share the work, and a run that is finished is not made again.

# %%
folder = Path("compared")
data = [str(events.resolve())]
run_sweep(
    arms.sweep(data, SEEDS), folder, extend=True,
    on_start=lambda number, name, state: print(f"{number + 1}: {name}, {state}"),
)  # fmt: skip

# %% [markdown]
# ## Differences
#
# For each seed both models rank for the same users, so that what makes a user hard cancels in the
# difference. Settings are chosen on the validation part; the test part is looked at once.

# %%
found = collect(arms, [events], SEEDS, folder, "python compare-models.py").report
for row in found["runs"]:
    print(f"{row['arm']:10} seed {row['seed']}  test NDCG@20 {row['test']['NDCG@20']:.4f}")

# %%
for entry in found["differences"]:
    if entry["part"] == "test" and entry["users"] == "all":
        users, seeds = entry["over_users"], entry["over_seeds"]
        sure = min(users[0], seeds[0]) > 0 or max(users[1], seeds[1]) < 0
        print(
            f"{entry['arm']} less {found['baseline']}, {entry['metric']}: "
            f"{entry['difference']:+.4f}, over users {users[0]:+.4f} to {users[1]:+.4f}, "
            f"over seeds {seeds[0]:+.4f} to {seeds[1]:+.4f}: "
            + ("established" if sure else "not established")
        )

# %% [markdown]
# The two intervals answer two questions. *Over users*: would other users of this kind show it?
# *Over seeds*: would another training? An effect is established where both leave out zero; with
# one seed there is no second interval, and nothing to claim.
#
# ## As a command
#
# The same with a file of arms, tables in Markdown and CSV included:
#
# ```sh
# adarec-fast compare --arms arms.yaml --data events.csv --seeds 5 --out compared
# ```
#
# What the file looks like, and how two finished runs are compared:
# `adarec-fast docs evaluation`.
