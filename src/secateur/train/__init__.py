"""Train and evaluate networks: tasks, recipes, and a loop that methods attach to."""

from secateur.train.attachment import Attachment as Attachment
from secateur.train.attachment import Moment as Moment
from secateur.train.evaluation import evaluate as evaluate
from secateur.train.hugging_face import HuggingFaceCallback as HuggingFaceCallback
from secateur.train.lightning import LightningCallback as LightningCallback
from secateur.train.loop import EpochRecord as EpochRecord
from secateur.train.loop import TrainResult as TrainResult
from secateur.train.loop import fit as fit
from secateur.train.schedules import RECIPES as RECIPES
from secateur.train.schedules import Recipe as Recipe
from secateur.train.schedules import recipe as recipe
from secateur.train.task import ClassificationTask as ClassificationTask
from secateur.train.task import FunctionTask as FunctionTask
from secateur.train.task import NextTokenTask as NextTokenTask
from secateur.train.task import RegressionTask as RegressionTask
from secateur.train.task import Task as Task
from secateur.train.tracking import Tracking as Tracking

__all__ = [
    "RECIPES",
    "Attachment",
    "ClassificationTask",
    "EpochRecord",
    "FunctionTask",
    "HuggingFaceCallback",
    "LightningCallback",
    "Moment",
    "NextTokenTask",
    "Recipe",
    "RegressionTask",
    "Task",
    "Tracking",
    "TrainResult",
    "evaluate",
    "fit",
    "recipe",
]
