import os
from pathlib import Path

import yaml

folder = os.environ.get("LIBERO_CONFIG_PATH", os.path.expanduser("~/.libero"))
config_file = os.path.join(folder, "config.yaml")
if not os.path.exists(config_file):
    input("Do you want to specify a custom path for the dataset folder? (Y/N): ")
assets = Path(__file__).parent


def get_libero_path(name: str) -> str:
    with open(config_file) as file:
        return dict(yaml.load(file.read(), Loader=yaml.FullLoader))[name]


def get_assets_path() -> str:
    return str(assets)
