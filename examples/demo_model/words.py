"""Word lists, written by hand: some to train on, others to test with, none in both."""

from __future__ import annotations

TRAINING_NOUNS = (
    "lamp kitchen timer kettle toaster oven fridge freezer plate bowl cup mug spoon fork knife "
    "pan pot lid tray jar bottle glass cutter grater peeler whisk ladle sieve scale mixer "
    "blender juicer grill stove hood sink tap faucet drain pipe hose filter sponge brush broom "
    "mop bucket vacuum cleaner duster towel soap shampoo mirror shower bath curtain carpet rug "
    "sofa couch chair stool table desk shelf cabinet drawer wardrobe hanger bed mattress pillow "
    "blanket sheet cushion door window handle hinge lock key bell camera phone charger cable "
    "adapter battery screen monitor keyboard mouse printer scanner router modem speaker "
    "headphone microphone laptop tablet computer server network password account email message "
    "file folder backup software browser page button switch sensor alarm light drill hammer saw "
    "screw screwdriver nail wrench clamp ladder tape glue paint roller bolt nut washer gasket "
    "level ruler chisel axe toolbox bench glove apron napkin tablecloth coaster tongs strainer "
    "thermometer dishwasher dryer iron fan heater radiator thermostat humidifier meter socket "
    "plug fuse wire cord remote antenna projector television radio clock watch strap case cover "
    "stand holder rack hook box crate bin bag pouch sleeve label sticker address order delivery "
    "parcel payment card bank profile picture photo video music game sound language region "
    "country city street house garage roof wall floor ceiling stair corner room bathroom "
    "bedroom office party baby child toy bear train truck car engine brake wheel seat"
).split()
TRAINING_ADJECTIVES = (
    "adjustable wooden steel plastic brass ceramic cotton electric digital wireless portable "
    "foldable heavy small large mini compact black white red blue green grey yellow round "
    "square flat deep tall wide narrow soft hard strong smooth cordless rechargeable waterproof "
    "durable cheap modern classic simple double single quick slow quiet bright dark warm cold "
    "fresh clear clean new old spare smart automatic manual industrial professional universal "
    "original extra free safe"
).split()
TRAINING_VERBS = (
    "reset change install remove repair replace connect update open close turn set cancel "
    "return track pay refund print scan charge pair mount hang store wash dry cook bake boil "
    "freeze cut chop slice mix pour fill empty fold press push pull lift move carry send share "
    "save delete restore search sort read write call record play stop start block mute log sign "
    "choose check test build"
).split()
# Words that look like training words, so that real look-alikes are seen in training too.
TRAINING_LOOKALIKES = (
    "cart lampoon carpenter kettledrum plateau cupboard forklift panther potato jargon glassy "
    "bedrock doorstep keystone locker phonetic cablegram screech mouth servant filet paper "
    "buttress drillers hammerhead scrawl nailer tapestry glued painter nutmeg leveller bathe "
    "chairman deskill fanatic irony clockwise standard rocking hooked boxer binary bagel "
    "labelled caress roomy babble trainee carve wheelie washing stir stare chart chord word "
    "wary brushwood towels bowler"
).split()
TRAINING_WORDS = (
    *TRAINING_NOUNS,
    *TRAINING_ADJECTIVES,
    *TRAINING_VERBS,
    *TRAINING_LOOKALIKES,
)

HELD_OUT_NOUNS = (
    "tent rope compass backpack canteen hammock lantern torch campfire kayak paddle canoe "
    "anchor sail surfboard snorkel goggle racket tennis golf hockey puck skate ski sled "
    "snowboard helmet bicycle pedal saddle tyre tractor trailer wagon guitar violin cello "
    "trumpet flute piano harp banjo ukulele metronome shovel rake spade trowel wheelbarrow "
    "fence gate gravel soil compost seed tulip orchid cactus fern hedge lawn mower greenhouse "
    "bird feeder aquarium kennel leash collar hamster parrot puppy kitten jacket coat trouser "
    "shirt blouse skirt scarf mitten sock boot sandal slipper belt buckle necklace bracelet "
    "earring brooch pendant wallet purse umbrella suitcase passport luggage ticket voucher "
    "coupon invoice receipt envelope stamp pencil crayon eraser notebook calendar stapler "
    "binder marker easel palette puzzle domino kite doll robot rocket dinosaur balloon "
    "garland wreath ornament candle incense vase basket berry cherry peach walnut honey cocoa "
    "recipe picnic stroller cradle diaper telescope microscope magnet globe tripod drone gadget "
    "museum stadium airport hotel ferry harbour bridge tunnel castle library university fox "
    "bush dress sandwich story diary lily pony hobby trophy membership subscription warranty "
    "insurance appointment newsletter"
).split()
HELD_OUT_ADJECTIVES = (
    "woollen leather velvet silk linen bamboo copper bronze marble granite rubber vintage "
    "rustic floral striped quilted padded insulated inflatable retractable detachable magnetic "
    "reflective transparent luminous scented organic vegan junior outdoor nautical tropical "
    "arctic purple orange pink crimson turquoise beige golden silver handmade lightweight "
    "breathable elastic fragile seasonal festive giant vertical diagonal hollow crisp sturdy"
).split()
HELD_OUT_VERBS = (
    "tighten loosen sharpen lubricate stitch prune fertilize harvest adopt groom rent borrow "
    "renew exchange register subscribe invite schedule translate assemble inspect calibrate "
    "dismantle decorate rehearse navigate measure rinse varnish upload archive verify donate "
    "compare transfer"
).split()
# For words above: real words that look like them and are others.
HELD_OUT_LOOKALIKES = {
    "tent": ("tenet", "tint", "tentacle"),
    "rope": ("robe", "ropeway", "grope"),
    "sail": ("snail", "sailor", "assail"),
    "kite": ("knit", "kitsch"),
    "ski": ("skip", "skim"),
    "rake": ("raven", "rakish"),
    "spade": ("shade", "spider"),
    "seed": ("steed", "seek", "seedling"),
    "fern": ("tern", "ferment"),
    "gate": ("goat", "gateau", "agate"),
    "harp": ("sharp", "harpoon"),
    "flute": ("fluke", "flutter"),
    "cello": ("cellar", "cellophane"),
    "coat": ("coast", "boat"),
    "belt": ("belly", "felt"),
    "boot": ("booth", "root"),
    "sock": ("stock", "sockeye"),
    "purse": ("nurse", "pulse", "pursuit"),
    "stamp": ("swamp", "stampede"),
    "ticket": ("thicket", "cricket"),
    "collar": ("dollar", "collage"),
    "leash": ("lease", "leach"),
    "parrot": ("carrot", "parry"),
    "puppy": ("puppet", "guppy"),
    "kitten": ("mitten", "kiln"),
    "doll": ("dolphin", "dole"),
    "rocket": ("rock", "pocket"),
    "candle": ("candid", "candy"),
    "vase": ("vast", "phase"),
    "basket": ("casket", "bask"),
    "marble": ("marvel", "warble"),
    "pencil": ("stencil", "pence"),
    "puck": ("pluck", "pucker"),
    "sled": ("shed", "sledge"),
    "golf": ("gold", "gulf"),
    "lawn": ("dawn", "flaw"),
    "soil": ("spoil", "soiree"),
    "shirt": ("short", "shirk"),
    "skirt": ("skit", "skirmish"),
    "scarf": ("scar", "scarce"),
    "sandal": ("scandal", "sandalwood"),
    "slipper": ("flipper", "slippery"),
    "wallet": ("mallet", "walled"),
    "magnet": ("magnetism", "magnate"),
    "globe": ("glob", "gloss"),
    "bridge": ("bride", "bridle"),
    "castle": ("cattle", "cast"),
    "fox": ("ox", "foxglove"),
    "berry": ("merry", "beret"),
    "cherry": ("sherry", "cherub"),
    "peach": ("preach", "beach"),
    "honey": ("money", "hone"),
    "story": ("stork", "storey"),
    "pony": ("phony", "bony"),
    "lily": ("lilt", "oily"),
    "hobby": ("lobby", "hobbit"),
    "copper": ("copier", "chopper"),
    "silk": ("sulk", "silt"),
    "linen": ("liner", "lineage"),
    "rent": ("vent", "rental"),
    "prune": ("prone", "pruner"),
    "rinse": ("prince", "rinds"),
    "stitch": ("itch", "stick"),
    "tulip": ("tunic", "tuna"),
    "canoe": ("canon", "canopy"),
    "torch": ("porch", "torment"),
}
