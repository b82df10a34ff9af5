"""The 35 data sets of Object Detection in the Wild: where each lies, and what prompts call its classes.

Source: GLIP, configs/odinw_13 and configs/odinw_35 (folders, OVERRIDE_CATEGORY, CAPTION_PROMPT, TEST).
"""
import dataclasses
import pathlib

from input_pipeline.annotations import load_lists

_ANNOTATIONS = "annotations_without_background.json"
_FOLDERS = {"train": "train", "val": "valid", "test": "test", "minival": "mini_val"}


@dataclasses.dataclass(frozen=True)
class OdinwSet:
    """One set.

    folder: below the folder of all sets. classes: names in the order of the category ids, with | between them.
    split: what the reference evaluates on unless told otherwise. in_13: one of the 13 of the paper's tables.
    """
    folder: str
    classes: str
    split: str = "val"
    in_13: bool = False

    @property
    def name(self) -> str:
        """As the reference and the benchmark's submission files call it."""
        return self.folder.replace("/", "_").replace(" ", "_")


SETS = (
    OdinwSet("AerialMaritimeDrone/large", "boat|car|dock|jetski|lift", in_13=True),
    OdinwSet("AerialMaritimeDrone/tiled", "boat|car|dock|jetski|lift"),
    OdinwSet("AmericanSignLanguageLetters/American Sign Language Letters.v1-v1.coco",
             "A|B|C|D|E|F|G|H|I|J|K|L|M|N|O|P|Q|R|S|T|U|V|W|X|Y|Z"),
    OdinwSet("Aquarium/Aquarium Combined.v2-raw-1024.coco",
             "fish|jellyfish|penguin|puffin|shark|starfish|stingray", in_13=True),
    OdinwSet("BCCD/BCCD.v3-raw.coco", "Platelets|RBC|WBC"),
    OdinwSet("ChessPieces/Chess Pieces.v23-raw.coco",
             "  |black bishop|black king|black knight|black pawn|black queen|black rook|white bishop|white king|"
             "white knight|white pawn|white queen|white rook"),
    OdinwSet("CottontailRabbits", "rabbit", in_13=True),
    OdinwSet("DroneControl/Drone Control.v3-raw.coco",
             "follow|follow_hand|land|land_hand|null|object|takeoff|takeoff-hand", split="minival"),
    OdinwSet("EgoHands/generic", "hand", split="minival", in_13=True),
    OdinwSet("EgoHands/specific", "myleft|myright|yourleft|yourright", split="minival"),
    OdinwSet("HardHatWorkers/raw", "head|helmet|person"),
    OdinwSet("MaskWearing/raw", "mask|no-mask"),
    OdinwSet("MountainDewCommercial", "bottle"),
    OdinwSet("NorthAmericaMushrooms/North American Mushrooms.v1-416x416.coco",
             "flat mushroom|yellow mushroom", in_13=True),
    OdinwSet("OxfordPets/by-breed",
             "cat-Abyssinian|cat-Bengal|cat-Birman|cat-Bombay|cat-British_Shorthair|cat-Egyptian_Mau|"
             "cat-Maine_Coon|cat-Persian|cat-Ragdoll|cat-Russian_Blue|cat-Siamese|cat-Sphynx|"
             "dog-american_bulldog|dog-american_pit_bull_terrier|dog-basset_hound|dog-beagle|dog-boxer|"
             "dog-chihuahua|dog-english_cocker_spaniel|dog-english_setter|dog-german_shorthaired|"
             "dog-great_pyrenees|dog-havanese|dog-japanese_chin|dog-keeshond|dog-leonberger|"
             "dog-miniature_pinscher|dog-newfoundland|dog-pomeranian|dog-pug|dog-saint_bernard|dog-samoyed|"
             "dog-scottish_terrier|dog-shiba_inu|dog-staffordshire_bull_terrier|dog-wheaten_terrier|"
             "dog-yorkshire_terrier",
             split="minival"),
    OdinwSet("OxfordPets/by-species", "cat|dog", split="minival"),
    OdinwSet("PKLot/640", "space-empty|space-occupied", split="minival"),
    OdinwSet("Packages/Raw", "package", in_13=True),
    OdinwSet("PascalVOC",
             "aeroplane|bicycle|bird|boat|bottle|bus|car|cat|chair|cow|diningtable|dog|horse|motorbike|person|"
             "pottedplant|sheep|sofa|train|tvmonitor",
             in_13=True),
    OdinwSet("Raccoon/Raccoon.v2-raw.coco", "raccoon", in_13=True),
    OdinwSet("ShellfishOpenImages/raw", "Crab|Lobster|Shrimp", in_13=True),
    OdinwSet("ThermalCheetah", "cheetah|human"),
    OdinwSet("UnoCards/raw", "0|1|2|3|4|5|6|7|8|9|10|11|12|13|14", split="minival"),
    OdinwSet("VehiclesOpenImages/416x416", "Ambulance|Bus|Car|Motorcycle|Truck", split="minival", in_13=True),
    OdinwSet("WildfireSmoke", "smoke"),
    OdinwSet("boggleBoards/416x416AutoOrient/export/",
             "Q|a|an|b|c|d|e|er|f|g|h|he|i|in|j|k|l|m|n|o|o |p|q|qu|r|s|t|t\\|th|u|v|w|wild|x|y|z"),
    OdinwSet("brackishUnderwater/960x540", "crab|fish|jellyfish|shrimp|small_fish|starfish", split="minival"),
    OdinwSet("dice/mediumColor/export", "1|2|3|4|5|6"),
    OdinwSet("openPoetryVision/512x512",
             "American Typewriter|Andale Mono|Apple Chancery|Arial|Avenir|Baskerville|Big Caslon|Bradley Hand|"
             "Brush Script MT|Chalkboard|Comic Sans MS|Copperplate|Courier|Didot|Futura|Geneva|Georgia|"
             "Gill Sans|Helvetica|Herculanum|Impact|Kefa|Lucida Grande|Luminari|Marker Felt|Menlo|Monaco|"
             "Noteworthy|Optima|PT Sans|PT Serif|Palatino|Papyrus|Phosphate|Rockwell|SF Pro|SignPainter|Skia|"
             "Snell Roundhand|Tahoma|Times New Roman|Trebuchet MS|Verdana",
             split="minival"),
    OdinwSet("pistols/export", "pistol", in_13=True),
    OdinwSet("plantdoc/416x416",
             "Apple Scab Leaf|Apple leaf|Apple rust leaf|Bell_pepper leaf|Bell_pepper leaf spot|Blueberry leaf|"
             "Cherry leaf|Corn Gray leaf spot|Corn leaf blight|Corn rust leaf|Peach leaf|Potato leaf|"
             "Potato leaf early blight|Potato leaf late blight|Raspberry leaf|Soyabean leaf|Soybean leaf|"
             "Squash Powdery mildew leaf|Strawberry leaf|Tomato Early blight leaf|Tomato Septoria leaf spot|"
             "Tomato leaf|Tomato leaf bacterial spot|Tomato leaf late blight|Tomato leaf mosaic virus|"
             "Tomato leaf yellow virus|Tomato mold leaf|Tomato two spotted spider mites leaf|grape leaf|"
             "grape leaf black rot"),
    OdinwSet("pothole", "pothole", in_13=True),
    OdinwSet("selfdrivingCar/fixedLarge/export/",
             "biker|car|pedestrian|trafficLight|trafficLight-Green|trafficLight-GreenLeft|trafficLight-Red|"
             "trafficLight-RedLeft|trafficLight-Yellow|trafficLight-YellowLeft|truck"),
    OdinwSet("thermalDogsAndPeople", "dog|person", in_13=True),
    OdinwSet("websiteScreenshots", "button|field|heading|iframe|image|label|link|text", split="minival"),
)

# Words around the names of four sets, from configs/odinw_35; configs/odinw_13 has none.
PROMPTS = {
    "Aquarium_Aquarium_Combined.v2-raw-1024.coco": (
        {"prefix": " ", "name": "fish"}, {"name": "jellyfish"},
        {"name": "penguin", "suffix": " , which is black and white"}, {"name": "puffin", "suffix": " with orange beaks "},
        {"name": "shark"}, {"name": "starfish"}, {"name": "stingray", "suffix": " which is flat and round"}),
    "EgoHands_generic": ({"prefix": " ", "name": "hand", "suffix": " of a person"},),
    "Packages_Raw": ({"prefix": "there is a ", "name": "package", "suffix": " on the porch"},),
    "pothole": ({"prefix": "there are some ", "name": "holes", "suffix": " on the road"},),
}

# Where configs/odinw_13 has other names.
CLASSES_13 = {
    "CottontailRabbits": "Cottontail-Rabbit",
    "NorthAmericaMushrooms_North_American_Mushrooms.v1-416x416.coco": "CoW|chanterelle",
}


def words(one: OdinwSet, naming: str) -> list[str | dict]:
    """What prompts call the classes of a set, in the order of the category ids.

    Args:
      naming: "35", names and prompts of configs/odinw_35; "13", the names of configs/odinw_13, without prompts.
    """
    if naming == "13":
        return CLASSES_13.get(one.name, one.classes).split("|")
    return list(PROMPTS.get(one.name, one.classes.split("|")))


def files_of(folder: pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path] | None:
    """(annotation file, folder of the images) of a split of a set; None if it has none.

    Known are the layouts of the benchmark's archives (`valid/annotations_without_background.json`, all images in one
    `export` folder) and `annotations/val.json` beside `images/val`.
    """
    for found in ((folder / _FOLDERS[split] / _ANNOTATIONS, folder / _FOLDERS[split]),
                  (folder / f"{split}_{_ANNOTATIONS}", folder),
                  (folder / "annotations" / f"{split}.json", folder / "images" / split)):
        if found[0].is_file():
            return found
    return None


def class_names(json_path: pathlib.Path, chosen: list[str | dict]) -> dict:
    """`class_names` of the `coco_json` source: each name of the file → its words.

    Raises: ValueError if the file has another number of categories than the set has names.
    """
    categories = sorted(load_lists(json_path, ("categories",))["categories"], key=lambda category: category["id"])
    if len(categories) != len(chosen):
        raise ValueError(f"{json_path}: found {len(categories)} categories {[c['name'] for c in categories]}, expected the "
                         f"{len(chosen)} of the benchmark; Roboflow's category 0, the background, has to be deleted")
    return {category["name"]: new for category, new in zip(categories, chosen) if new != category["name"]}
