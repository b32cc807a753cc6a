"""Built-in prompts: each asks for a sentence about an everyday thing and leaves the sentiment to the model.

Each thing occurs in one prompt only, so training and held-out prompts have no thing in common.
"""

REQUESTS = (
  'Tell me in one sentence how {} was.',
  'Write a one-sentence review of {}.',
  'In one sentence, what did people say about {}?',
  'Write one sentence about {}.',
)

THINGS = """
the hotel room I booked; the film we saw on Friday; the soup at the new restaurant; the train ride to the coast
my first day at the office; the concert in the park; the museum of clocks; the bread from the corner bakery
the meeting with the landlord; the novel I finished last night; the coffee at the airport; the bus tour of the old town
the haircut I got yesterday; the weather last weekend; the school play; the new version of the app
the keyboard I ordered; the football match; the online course on statistics; the dentist appointment
the flight to Lisbon; the farmers' market; the ferry crossing; the wedding speech
the camping trip; the phone call with the bank; the theatre on Mill Road; the piano lesson
the apartment near the station; the science exhibition; the delivery of the sofa; the city council's plan
the documentary about bees; the hike up the hill; the pasta I cooked; the language class
the conference in Berlin; the swimming pool; the customer service of the shop; the guitar I borrowed
the neighbours' garden party; the podcast episode; the library's reading room; the job interview
the night bus; the winter in the village; the cake at the birthday party; the repair of my bicycle
the taxi driver; the jazz band; the visit to the zoo; the video game my brother likes
the rental car; the breakfast at the guest house; the poem on the wall; the pharmacy downtown
the art class; the road through the mountains; the new desk chair; the lecture on Roman history
the street food festival; the dance performance; the ski resort; the software update
the vegetable box; the boat on the lake; the election debate; the tea shop by the canal
the running shoes I bought; the crossword in the paper; the hospital's waiting room; the puppet show
the tailor who fixed my coat; the moving company; the radio programme; the botanical garden
the sandwich from the kiosk; the chess tournament; the yoga studio; the walk along the river
the electric scooter; the television series; the lighthouse; the office canteen
the photo workshop; the second-hand bookshop; the summer school; the fishing trip
the dinner with my cousins; the parking garage; the morning traffic; the cooking show
the pizza on Main Street; the castle ruins; the charity run; the internet connection at home
the opera on Sunday; the garden centre; the tablet I was given; the seminar on tax law
the cable car; the ice cream truck; the book club; the youth hostel
the gym around the corner; the biography of the inventor; the beach in October; the birthday present
the print shop; the mountain hut; the comedy night; the washing machine I bought
the suburban train; the wine tasting; the history podcast; the tomatoes from the balcony
the tour guide; the noise in the courtyard; the ballet; the airport security line
the pub quiz; the headphones from the sale; the puzzle on the table; the harbour restaurant
the parents' evening; the solar panels on the roof; the road trip; the choir rehearsal
the old cinema; the vacuum cleaner; the spring festival; the letter from the insurance company
the sculpture in the square; the horse ride; the printer at work; the tennis lesson
the mobile plan; the burger stand; the island we visited; the plumber who came on Monday
the watch my aunt sold me; the aquarium; the bike lane on our street; the short story collection
the village bakery; the dog training course; the evening news; the shuttle to the hotel
the raincoat from the catalogue; the new stadium; the picnic by the pond; the driving test
the translation of the play; the tram line; the house we rented; the magic show
the bus driver this morning; the new mayor; the canoe trip; the debate club
the shoes in the window; the winter coat; the exhibition of old maps; the night at the campsite
the painter of our kitchen; the salad bar; the radio play; the evening at the observatory
"""


def split(train: int, held_out: int) -> tuple[list[str], list[str]]:
  """Returns two disjoint lists of prompts, the same on every call: `train` from the front, `held_out` from the back.

  Raises:
    ValueError: if there are not enough prompts.
  """
  things = [thing.strip() for line in THINGS.strip().splitlines() for thing in line.split(';')]
  everything = [REQUESTS[index % len(REQUESTS)].format(thing) for index, thing in enumerate(things)]
  if train < 1 or held_out < 1 or train + held_out > len(everything):
    raise ValueError(
      f'train={train} and held_out={held_out}: each must be at least 1, and together at most {len(everything)}, the '
      'number of built-in prompts'
    )
  return everything[:train], everything[len(everything) - held_out :]
