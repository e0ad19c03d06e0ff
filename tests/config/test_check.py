"""Every option composes and checks; identities; what commands do not use."""

import copy
from pathlib import Path

import pytest
from omegaconf import OmegaConf, flag_override, open_dict

from kd_cli.commands.help import GROUPS, options
from kd_cli.commands.table import TABLE
from kd_cli.config.check import check
from kd_cli.config.compose import ROLES, compose, conf_dir
from kd_cli.config.keys import UNUSED
from kd_cli.config.overrides import override_key
from kd_cli.errors import ConfigError
from kd_cli.runs.identity import point_dir, run_dir, run_id, run_name, run_spec, teacher_dir
from kd_cli.runs.resolvers import register_resolvers
from tests.conftest import TFDS
from tests.conftest import plan_of as plan

COMMANDS = [command.word for command in TABLE if command.trains]
OPTIONS = [f"{g}={option}" for g in GROUPS if g != "network" for option in options(g)]
NEEDED = {
    "dataset=tfds": TFDS,
    "dataset=npz": ["dataset.path={npz}"],
    "dataset=image_folder": ["dataset.path={dir}"],
    "experiment=flowers12_function_matching": ["dataset.path={dir}"],
    "experiment=flowers12_pretrained": ["dataset.path={dir}"],
    **{
        f"{role}={name}": [f"{role}.network.{key}={value}" for key, value in sizes.items()]
        for role in ROLES
        for name, sizes in {
            "resnet": {"depth": 26},
            "vgg": {"depth": 13},
            "wide_resnet": {"depth": 22, "width": 3},
            "bit_resnet": {"depth": 50, "width": 3},
        }.items()
    },
    "schedule=multistep": ["schedule.milestones=[2,5]"],
    # (The default networks take images.)
    "dataset=text": ["dataset.path={dir}/../texts.csv", "teacher=bag", "student=bag"],
    "dataset=film_reviews": ["teacher=bag", "student=bag"],
    **{
        f"{role}={name}": ["dataset=film_reviews", f"{other}=bag"]
        for role, other in (ROLES, ROLES[::-1])
        for name in ("bag", "text_cnn", "transformer_encoder")
    },
}


@pytest.fixture
def extra(npz, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").touch()
    (tmp_path / "texts.csv").write_text("text,label\nt 1,a\nt 2,b\n")

    def for_option(option):
        return [text.format(npz=npz, dir=tmp_path / "images") for text in NEEDED.get(option, [])]

    return for_option


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_every_recipe_for_every_command(option, extra):
    for command in COMMANDS if option.startswith("experiment=") else ("distill",):
        if override_key(option) in UNUSED[command]:
            continue
        made = plan(command, option, *extra(option))
        assert not OmegaConf.missing_keys(made)
        assert made.command == command


def test_the_manual_names_every_group():
    folders = {p.name for p in conf_dir().iterdir() if p.is_dir()} - {"hydra"}
    assert folders == {*GROUPS, "network"}  # whose options go into teachers and students


@pytest.mark.parametrize(
    ("experiment", "teacher", "student"),
    [  # epochs, batch size, learning rate: RECIPES
        ("cifar10_bn_cnn", (40, 32, 1e-3), (5, 32, 1e-3)),
        ("cifar10_bn_cnn_mended", (40, 32, 1e-3), (5, 32, 1e-3)),
        ("cifar10_cnn", (20, 64, 1e-3), (20, 64, 1e-3)),
        ("mnist_cnn", (5, 64, 1e-3), (3, 64, 1e-3)),
        ("fashion_mnist_mlp", (50, 256, 1e-3), (50, 256, 1e-3)),
    ],
)
def test_a_recipe_gives_each_command_its_own_numbers(experiment, teacher, student):
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        expected = teacher if command == "train-teacher" else student
        made = plan(command, f"experiment={experiment}")
        assert (made.epochs, made.batch_size, made.learning_rate) == expected


@pytest.mark.parametrize(
    ("experiment", "alpha", "temperature", "t_squared"),
    [
        ("cifar10_bn_cnn", 0.1, 10, True),
        ("cifar10_cnn", 0.1, 10, False),
        ("mnist_cnn", 0.1, 10, True),
        ("fashion_mnist_mlp", 0.9, 2, False),
    ],
)
def test_a_recipe_sets_the_published_loss(experiment, alpha, temperature, t_squared):
    (loss,) = plan("distill", f"experiment={experiment}").loss.values()
    assert (loss.alpha, loss.temperature, loss.t_squared) == (alpha, temperature, t_squared)


def test_fashion_recipe_has_a_floor_for_each_role():
    recipe = "experiment=fashion_mnist_mlp"
    assert plan("train-teacher", recipe).schedule.floor == 0.01
    for command in ("train-student", "distill", "self-train"):
        assert plan(command, recipe).schedule.floor == 0.1


def test_epochs_on_the_command_line_are_the_role_s(tmp_path):
    assert plan("distill", "experiment=mnist_cnn", "epochs=9").epochs == 9
    assert plan("train-teacher", "experiment=mnist_cnn").epochs == 5


def test_a_loss_may_replace_the_recipe_s():
    made = plan("distill", "experiment=cifar10_cnn", "loss=hard")
    node = {"_target_": "kd_cli.distillation.hard", "_partial_": True, "alpha": 0.1}
    assert OmegaConf.to_container(made.loss) == {"hard": node}
    assert "temperature" not in made


def test_a_loss_of_the_user_may_have_a_key_of_its_own_below_it(tmp_path):
    """hinton's alpha is the root's; this loss's is a number of its own."""
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text(
        "mine: {_target_: kd_cli.distillation.hard, _partial_: true, alpha: 0.5}\n"
    )
    words = ("distill", "--config-dir", str(tmp_path), "loss=mine")
    made = plan(*words, "loss.mine.alpha=0.25")
    assert made.loss.mine.alpha == 0.25 and "alpha" not in made
    with pytest.raises(ConfigError, match="loss=mine has its own, loss.mine.alpha; remove a"):
        plan(*words, "alpha=0.3")
    typed = plan("distill", "loss.hinton.alpha=${alpha}", "alpha=0.25")
    assert typed.loss.hinton.alpha == 0.25


def test_a_new_command_needs_no_entry_in_the_table_of_keys(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [base, _self_]\ncommand: mine\n")
    register_resolvers()
    made = check(compose("mine", ["alpha=0.3"], str(tmp_path)), ["alpha=0.3"])
    assert made.command == "mine" and made.alpha == 0.3 and made.rounds == 3


@pytest.mark.parametrize("place", ["augment", "teacher.training.augment"])
def test_a_size_needs_a_step_that_makes_it(place):
    group = "augment" if place == "augment" else f"augment@{place}"
    with pytest.raises(ConfigError, match=f"^{place}.size=8 changes nothing"):
        plan("distill", f"{group}=none", f"{place}.size=8")  # as the digits are
    # (Whether its steps make that size is seen with the data.)
    assert plan("distill", f"{group}=flip_crop", f"{place}.size=4")
    with pytest.raises(ConfigError, match=f"^{place}.size=4: no .* e.g. {group}=inception"):
        plan("distill", f"{group}=none", f"{place}.size=4")


def test_equal_numbers_are_the_same_run():
    assert run_id(plan("distill", "temperature=10")) == run_id(plan("distill", "temperature=10.0"))
    assert run_id(plan("distill", "temperature=10")) != run_id(plan("distill", "temperature=9"))


@pytest.mark.parametrize(
    "override",
    ["data_dir=/x", "cache_dir=/x", "device=cpu", "sweep=s", "tracker=tensorboard", "rerun=true"],
)
def test_places_do_not_count(override):
    assert run_id(plan("distill", override)) == run_id(plan("distill"))


@pytest.mark.parametrize(
    "override",
    ["alpha=0.2", "seed=1", "init_seed=1", "data_seed=1", "epochs=3", "batch_size=7", "loss=hard",
     "learning_rate=0.1", "student.network.units=[3]", "teacher=mlp", "dataset.limit=9",
     "precision=mixed_bfloat16", "optimizer=sgd", "t_squared=false", "schedule=cosine",
     "early_stopping.patience=3", "steps=5", "dataset.split_seed=1", "student.input.scale=1",
     "dataset.labelled_fraction=0.5"],
)  # fmt: skip
def test_what_can_change_the_result_counts(override):
    assert run_id(plan("distill", override)) != run_id(plan("distill"))


def test_all_labels_make_the_same_run_and_teacher_as_before_there_was_a_choice():
    digits = plan("distill", "dataset=digits")
    for made in (digits, plan("distill", "dataset=digits", "dataset.labelled_fraction=1")):
        assert "labelled_fraction" not in run_spec(made)["dataset"]
    few = plan("distill", "dataset=digits", "dataset.labelled_fraction=0.1")
    assert teacher_dir(few) != teacher_dir(made)


def test_all_labels_that_are_typed_leave_no_images_without():
    made = plan("distill", "dataset=digits_few_labels", "dataset.labelled_fraction=1")
    assert made.dataset.unlabelled == "leave_out"
    assert plan("distill", "dataset=digits_few_labels").dataset.unlabelled == "use"
    assert teacher_dir(made) == teacher_dir(plan("distill", "dataset=digits"))


def test_keys_that_a_command_does_not_use_do_not_count():
    scratch = plan("train-student", "experiment=mnist_cnn")
    assert "teacher" not in scratch and "alpha" not in scratch
    assert scratch.loss.ce["_target_"] == "kd_cli.distillation.cross_entropy"


def test_seeds_do_not_move_the_split_or_the_teacher():
    a, b = plan("distill", "seed=0"), plan("distill", "seed=1")
    assert a.dataset.split_seed == b.dataset.split_seed == 0
    assert teacher_dir(a) == teacher_dir(b)


def test_directories_are_readable():
    made = plan("distill", "alpha=0.5", "temperature=10.0", "seed=3")
    assert run_name(made).startswith("mlp_hinton_alpha0.5_temperature10_steps400_seed3-")
    assert run_dir(made).parts[:3] == ("outputs", "distill", "digits")


def test_input_size_gives_the_network_its_shape():
    made = plan("distill", "student.input.size=16")
    assert list(made.student.network.image_shape) == [16, 16, 1]
    assert list(made.teacher.network.image_shape) == [8, 8, 1]


BAD_NAMES = [
    "../up", "/abs", "a/../b", ".", "..", "...", "", ".hidden", " a", "a ", r"a\b", "a\nb",
    "a\x00b", "a\x1b[31mb", "x" * 81, "é" * 41, "a//b", "\udcff",
]  # fmt: skip
NAMED = [
    ("train-student", "student.name"), ("train-student", "dataset.name"),
    ("train-teacher", "teacher.name"), ("distill", "teacher.name"), ("train-student", "sweep"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "key"), NAMED)
def test_no_name_leads_out_of_outputs(work, command, key):
    """Folders and tables are named by them: each is refused before there is a folder."""
    register_resolvers()
    composed = compose(command, [])

    def checked(name):
        cfg = copy.deepcopy(composed)
        OmegaConf.update(cfg, key, name)
        return check(cfg)

    for name in BAD_NAMES:
        with pytest.raises(ConfigError) as caught:
            checked(name)
        line = str(caught.value)
        assert line.startswith(f"{key}=") and "must be a name for a folder: " in line
        assert line.isprintable() and len(line) < 250
    for name in ("mlp", "résumé", "a.b", "x" * 80, "a=b,c"):
        out = run_dir(checked(name))
        assert len(out.name.encode()) <= 255 and ".." not in out.parts
    if key in ("dataset.name", "sweep"):  # some sets of tensorflow-datasets have such names
        assert OmegaConf.select(checked("imagenet_v2/matched"), key) == "imagenet_v2/matched"
    else:
        with pytest.raises(ConfigError, match="without / and"):
            checked("a/b")


def test_a_tracker_s_name_is_a_folder_s_too(work):
    register_resolvers()
    cfg = compose("train-student", [])
    with open_dict(cfg):
        cfg.tracker = {"../../up": {"_target_": "kd_cli.training.TensorBoard"}}
    with pytest.raises(
        ConfigError, match=r"^tracker\.\.\./\.\./up: it must have a name for a folder"
    ):
        check(cfg)


def test_a_directory_s_name_is_cut_where_file_systems_end(work):
    one = plan("train-student", f"student.name={'x' * 80}")
    with flag_override(one, "readonly", False):
        one.student.name = "é" * 200
    name = run_name(one)
    assert len(name.encode()) == 211 and name == f"{'é' * 100}-{run_id(one)}"


def test_all_that_is_written_lies_below_outputs(monkeypatch):
    monkeypatch.delenv("KD_CACHE_DIR", raising=False)
    made = plan("distill", "outputs=elsewhere", "sweep=s")
    places = [run_dir(made), teacher_dir(made), point_dir(made), made.cache_dir]
    assert {Path(place).parts[0] for place in places} == {"elsewhere"}
    read = plan("distill", "outputs=elsewhere", *("dataset=tfds", *TFDS)).dataset.source
    assert read.cache_dir == "elsewhere/cache"
    monkeypatch.setenv("KD_CACHE_DIR", "kept")
    assert plan("distill", "outputs=elsewhere").cache_dir == "kept"
    assert plan("distill", "outputs=elsewhere", "cache_dir=here").cache_dir == "here"
