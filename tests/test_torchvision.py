"""torchvision imports after clearhead, whatever torch it was built for."""

import subprocess
import sys


def test_torchvision_imports_and_its_transforms_work():
    code = (
        "import clearhead, torch\n"
        "from torchvision.transforms import v2\n"
        "print(v2.Resize(4)(torch.zeros(3, 8, 8)).shape)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "[3, 4, 4]" in run.stdout
