"""What a model looks at: attention, group tokens and Grad-CAM as images and as numbers.

```python
from globalvit.explain import contact_sheet, explain, overlay, views
views(model)                                            # what there is to see
seen = explain(model, "apple.jpg", "global", stage=3)   # seen.map: float32 (H, W); seen.values: the token grid
overlay("apple.jpg", seen).save("seen.png")
```
"""

from globalvit.explain.drawing import contact_sheet, overlay
from globalvit.explain.explaining import explain
from globalvit.explain.explanation import Explanation
from globalvit.explain.scores import find_class
from globalvit.explain.views import View, find_view, views

__all__ = ["Explanation", "View", "contact_sheet", "explain", "find_class", "find_view", "overlay", "views"]
