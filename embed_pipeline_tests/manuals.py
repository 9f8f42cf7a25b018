"""Three short manuals, for the test with the real language model."""

MANUALS = {
    "coffee-machine.md": """# Coffee machine

## Descaling

Descale the machine every three months, or when the red drop lights up. Fill the tank with half a litre of water and
one sachet of descaling powder, press and hold the steam button for five seconds, and let the cycle run for twenty
minutes. Rinse the tank twice afterwards.

## Grinder

The grinder has twelve settings. Setting one gives a fine powder for espresso, setting twelve a coarse one for a French
press. Turn the dial only while the grinder is running, since a standing grinder jams when it is turned.

## Milk frother

The frother works with cold milk only. Milk warmer than ten degrees does not foam. After every use, run the cleaning
program of the frother, which takes fifteen seconds and needs an empty cup under the nozzle.

## Error codes

Error E4 means that the brewing unit is not in its place. Switch the machine off, open the left door, push the brewing
unit in until it clicks, and close the door. Error E7 means that the pump has run dry: fill the tank.
""",
    "tent.md": """# Trekking tent

## Pitching

Peg out the four corners of the inner tent first. Slide the blue pole through the long sleeve and the two grey poles
through the short ones, then raise the tent by pushing both ends of the blue pole into their eyelets. Put the flysheet
over it and tie it down on the side away from the wind.

## Condensation

Water drops on the inside of the flysheet come from breath, not from a leak. Open both vents at the top and leave the
door of the porch ajar by a hand's width. Do not cook inside the closed porch.

## Repairs

Small holes in the flysheet are closed with the silicone patches in the repair bag. Clean the cloth with alcohol, press
the patch on for one minute, and let it cure for six hours before rain falls on it. Broken poles are splinted with the
aluminium sleeve.

## Storage

Never store the tent wet. Hang it up for two days until the seams are dry, and keep it loosely in the cotton sack
instead of the packing bag, because tight folds break the coating.
""",
    "bicycle.md": """# Touring bicycle

## Tyres

Inflate the tyres to four bar on asphalt and to three bar on gravel. The arrow on the side of the tyre shows the
direction in which it turns. Replace a tyre when the blue layer under the tread shows.

## Brakes

The hydraulic brakes use mineral oil, never brake fluid of cars, which destroys the seals. Replace the pads when less
than one millimetre of them is left. New pads need thirty hard stops from walking pace before they brake fully.

## Chain

Oil the chain every two hundred kilometres and after rain. Wipe off what drips, because oil on the outside only
collects sand. A chain that has grown longer by one per cent is worn and wears out the sprockets.

## Lights

The front light gets its power from the hub dynamo and needs no battery. It goes on shining for four minutes after the
bicycle stops. If the rear light stays dark, look at the plug behind the left crank first.
""",
}
